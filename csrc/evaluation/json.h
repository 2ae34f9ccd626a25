// SPDX-License-Identifier: Apache-2.0
// A cursor in strict ASCII JSON text. Every function advances and returns true, or returns false if the text
// ends, is malformed, or has features that are left to Python (not ASCII, deep nesting, NaN).
#pragma once

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace sohes::evaluation {

struct JsonString {
  const uint8_t* begin;
  const uint8_t* end;
  bool has_backslash;      // written twice, as JSON requires
  bool has_other_escapes;  // \n, \u0041, ...

  bool is(std::string_view name) const {
    return static_cast<size_t>(end - begin) == name.size() &&
           std::memcmp(begin, name.data(), name.size()) == 0;
  }
};

struct JsonNumber {
  const char* begin;
  const char* end;
  bool is_integer;

  bool read(int64_t& value) const {
    const auto [stop, error] = std::from_chars(begin, end, value);
    return is_integer && error == std::errc() && stop == end;
  }
  // Rounded as Python's float() does. A standard library without this leaves all numbers to Python.
  bool read(double& value) const {
#ifdef __cpp_lib_to_chars
    const auto [stop, error] = std::from_chars(begin, end, value);
    return error == std::errc() && stop == end;
#else
    (void)value;
    return false;
#endif
  }
};

class JsonCursor {
 public:
  JsonCursor(const uint8_t* begin, const uint8_t* end) : at_(begin), end_(end) {}

  const uint8_t* place() const { return at_; }

  // The next character that is not white space, 0 at the end.
  uint8_t peek() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
    return at_ < end_ ? *at_ : 0;
  }

  bool take(char expected) {
    if (peek() != static_cast<uint8_t>(expected)) return false;
    ++at_;
    return true;
  }

  bool string(JsonString& found) {
    if (!take('"')) return false;
    found = {at_, at_, false, false};
    while (true) {
      while (end_ - at_ >= kBlock && is_plain(at_)) at_ += kBlock;
      while (at_ < end_ && is_plain_character(*at_)) ++at_;
      if (at_ == end_) return false;
      if (*at_ == '"') {
        found.end = at_++;
        return true;
      }
      if (!escape(found)) return false;
    }
  }

  bool number(JsonNumber& found) {
    peek();
    found.begin = reinterpret_cast<const char*>(at_);
    found.is_integer = true;
    if (at_ < end_ && *at_ == '-') ++at_;
    if (at_ < end_ && *at_ == '0') {
      ++at_;
    } else if (!digits()) {
      return false;
    }
    if (at_ < end_ && *at_ == '.') {
      found.is_integer = false;
      ++at_;
      if (!digits()) return false;
    }
    if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
      found.is_integer = false;
      ++at_;
      if (at_ < end_ && (*at_ == '+' || *at_ == '-')) ++at_;
      if (!digits()) return false;
    }
    found.end = reinterpret_cast<const char*>(at_);
    return at_ < end_;  // else it may continue after the text
  }

  bool literal(std::string_view word) {
    peek();
    if (static_cast<size_t>(end_ - at_) < word.size() || std::memcmp(at_, word.data(), word.size()) != 0) {
      return false;
    }
    at_ += word.size();
    return true;
  }

  // Any value.
  bool skip(int depth = 32) {
    JsonString text;
    JsonNumber number_;
    switch (peek()) {
      case '"':
        return string(text);
      case 't':
        return literal("true");
      case 'f':
        return literal("false");
      case 'n':
        return literal("null");
      case '[':
        return depth > 0 && elements([&] { return skip(depth - 1); });
      case '{':
        return depth > 0 && members([&](const JsonString&) { return skip(depth - 1); });
      default:
        return number(number_);
    }
  }

  // body() takes one value.
  template <typename Body>
  bool elements(Body&& body) {
    if (!take('[')) return false;
    if (take(']')) return true;
    do {
      if (!body()) return false;
    } while (take(','));
    return take(']');
  }

  // body(key) takes the key's value.
  template <typename Body>
  bool members(Body&& body) {
    if (!take('{')) return false;
    if (take('}')) return true;
    JsonString key;
    do {
      if (!string(key) || !take(':') || !body(key)) return false;
    } while (take(','));
    return take('}');
  }

 private:
  static constexpr int kBlock = 32;

  static bool is_plain_character(uint8_t c) { return c >= 0x20 && c < 0x80 && c != '"' && c != '\\'; }

  // In a form that compilers vectorize.
  static bool is_plain(const uint8_t* block) {
    uint8_t odd = 0;
    for (int i = 0; i < kBlock; ++i) {
      const uint8_t c = block[i];
      odd |= static_cast<uint8_t>((c < 0x20) | (c >= 0x80) | (c == '"') | (c == '\\'));
    }
    return odd == 0;
  }

  bool escape(JsonString& found) {
    if (*at_ != '\\' || end_ - at_ < 2) return false;  // a control character, or other than ASCII
    const uint8_t kind = at_[1];
    at_ += 2;
    if (kind == '\\') {
      found.has_backslash = true;
      return true;
    }
    found.has_other_escapes = true;
    if (kind != 'u') return kind != 0 && std::strchr("\"/bfnrt", kind) != nullptr;
    if (end_ - at_ < 4) return false;
    for (const uint8_t* stop = at_ + 4; at_ < stop; ++at_) {
      const uint8_t letter = *at_ | 0x20;
      if (!((*at_ >= '0' && *at_ <= '9') || (letter >= 'a' && letter <= 'f'))) return false;
    }
    return true;
  }

  bool digits() {
    const uint8_t* begin = at_;
    while (at_ < end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return at_ > begin;
  }

  const uint8_t* at_;
  const uint8_t* end_;
};

}  // namespace sohes::evaluation
