// SPDX-License-Identifier: Apache-2.0
// Merging of a batch of images: divides the scratch among the threads and builds the graph of each image.
#include <algorithm>

#include "../mask_ops/parallel.h"
#include "carver.h"
#include "greedy.h"
#include "rounds.h"
#include "sohes/merge_regions.h"

namespace sohes {
namespace {

using merging::Carver;
using merging::ChannelLoops;

struct Image {
  int64_t start, height, width;
};

std::vector<Image> images_of(const std::vector<int64_t>& grid_sizes) {
  std::vector<Image> images;
  int64_t start = 0;
  for (size_t i = 0; i + 1 < grid_sizes.size(); i += 2) {
    images.push_back({start, grid_sizes[i], grid_sizes[i + 1]});
    start += grid_sizes[i] * grid_sizes[i + 1];
  }
  return images;
}

int64_t grid_edges_bound(const Image& image) { return 2 * image.height * image.width; }

// 4-neighbours, in the order of their first region, both inside the mask (null: everywhere). Returns their
// number.
int32_t write_grid_edges(const Image& image, const bool* mask, int32_t* edges) {
  int32_t count = 0;
  const int32_t height = static_cast<int32_t>(image.height), width = static_cast<int32_t>(image.width);
  const auto add = [&](int32_t u, int32_t v) {
    if (mask != nullptr && !(mask[u] && mask[v])) return;
    edges[2 * count] = u;
    edges[2 * count + 1] = v;
    ++count;
  };
  for (int32_t y = 0; y < height; ++y) {
    for (int32_t x = 0; x < width; ++x) {
      const int32_t i = y * width + x;
      if (x + 1 < width) add(i, i + 1);
      if (y + 1 < height) add(i, i + width);
    }
  }
  return count;
}

// One thread's share of the scratch, for one image at a time.
struct Share {
  float* rows;     // [N, C], only for float16 and bfloat16: the features in float32, merged in place
  int32_t* edges;  // [E, 2], only for grids
  void* merging;
  size_t bytes;

  Share(void* block, int64_t num_regions, int64_t num_edges, int64_t channels, bool is_half, bool is_grid,
        bool in_rounds) {
    Carver carver(block);
    rows = carver.take<float>(is_half ? num_regions * channels : 0);
    edges = carver.take<int32_t>(is_grid ? 2 * num_edges : 0);
    const auto scratch_bytes = in_rounds ? merging::rounds_scratch_bytes : merging::greedy_scratch_bytes;
    merging = carver.take<char>(scratch_bytes(num_regions, num_edges, channels, is_half));
    bytes = carver.used();
  }
};

size_t share_bytes(const std::vector<Image>& images, int64_t channels, bool is_half, bool in_rounds) {
  size_t most = 0;
  for (const Image& image : images) {
    const int64_t num_regions = image.height * image.width, num_edges = grid_edges_bound(image);
    most = std::max(most, Share(nullptr, num_regions, num_edges, channels, is_half, true, in_rounds).bytes);
  }
  return most;
}

int num_shares(int num_threads, size_t num_images) {
  return std::max(1, std::min(num_threads, static_cast<int>(num_images)));
}

bool is_half(const TensorView& features) { return features.dtype != DType::kFloat32; }

const ChannelLoops& loops_named(const std::string& name) {
  const auto& loops = merging::channel_loops();
  if (name.empty()) return loops.front();
  const auto found = std::find_if(loops.begin(), loops.end(), [&](const auto& l) { return l.name == name; });
  require(found != loops.end(), "merge_regions: this processor has no such loops");
  return *found;
}

struct Outputs {
  const TensorView &merges, &similarity, &num_merges;
  const std::optional<TensorView>& heights;  // in rounds
};

// Merges the regions from row `start` on, and fills the rows of the outputs that belong to them.
void merge_rows(const TensorView& features, int64_t start, int64_t num_regions, const int32_t* edges,
                int64_t num_edges, float min_similarity, const ChannelLoops& loops, const Share& share,
                const Outputs& outputs, int64_t image) {
  const int64_t channels = features.shape[1];
  float* rows = share.rows;
  if (is_half(features)) {
    loops.widen(features.as<uint16_t>() + start * channels, features.dtype, num_regions * channels, rows);
  } else {
    rows = features.as<float>() + start * channels;
  }
  const merging::Graph graph = {rows,
                                is_half(features),
                                static_cast<int32_t>(num_regions),
                                channels,
                                edges,
                                static_cast<int32_t>(num_edges)};
  const merging::Merges out = {outputs.merges.as<int32_t>() + 2 * start,
                               outputs.similarity.as<float>() + start};
  int32_t count = 0;
  if (outputs.heights) {
    float* heights = outputs.heights->as<float>() + start;
    count = merging::merge_in_rounds(graph, loops, share.merging, out, heights);
    std::fill(heights + count, heights + num_regions, 0.0f);
  } else {
    count = merging::merge_greedily(graph, min_similarity, loops, share.merging, out);
  }
  std::fill(out.pairs + 2 * count, out.pairs + 2 * num_regions, -1);
  std::fill(out.similarity + count, out.similarity + num_regions, 0.0f);
  outputs.num_merges.as<int32_t>()[image] = count;
}

void check_views(const TensorView& features, const TensorView& scratch, size_t scratch_bytes,
                 const Outputs& outputs) {
  const auto& [merges, similarity, num_merges, heights] = outputs;
  require(features.ndim == 2 && features.is_contiguous(),
          "merge_regions: features are not contiguous [T, C]");
  require(features.shape[0] < (1 << 28), "merge_regions: 2^28 regions or more");
  require(merges.dtype == DType::kInt32 && merges.is_contiguous() && merges.numel() == 2 * features.shape[0],
          "merge_regions: merges are not contiguous int32 [T, 2]");
  require(similarity.dtype == DType::kFloat32 && similarity.is_contiguous() &&
              similarity.numel() == features.shape[0],
          "merge_regions: similarity is not contiguous float32 [T]");
  require(!heights || (heights->dtype == DType::kFloat32 && heights->is_contiguous() &&
                       heights->numel() == features.shape[0]),
          "merge_regions: heights are not contiguous float32 [T]");
  require(num_merges.dtype == DType::kInt32 && num_merges.is_contiguous(),
          "merge_regions: num_merges is not int32 [B]");
  require(static_cast<size_t>(scratch.numel()) >= scratch_bytes, "merge_regions: the scratch is too small");
}

}  // namespace

int64_t merge_regions_scratch(const std::vector<int64_t>& grid_sizes, int64_t num_edges, int64_t channels,
                              bool is_half, int num_threads, bool in_rounds) {
  const std::vector<Image> images = images_of(grid_sizes);
  if (num_edges < 0) {
    return share_bytes(images, channels, is_half, in_rounds) * num_shares(num_threads, images.size());
  }
  const int64_t num_regions = grid_sizes.at(0) * grid_sizes.at(1);
  return Share(nullptr, num_regions, num_edges, channels, is_half, false, in_rounds).bytes;
}

void merge_regions_cpu(const TensorView& features, const std::optional<TensorView>& region_mask,
                       const std::vector<int64_t>& grid_sizes, float min_similarity, int num_threads,
                       const std::string& loops, const TensorView& scratch, const TensorView& merges,
                       const TensorView& similarity, const TensorView& num_merges,
                       const std::optional<TensorView>& heights) {
  const std::vector<Image> images = images_of(grid_sizes);
  const Outputs outputs = {merges, similarity, num_merges, heights};
  const int64_t channels = features.shape[1];
  const bool half = is_half(features), in_rounds = heights.has_value();
  const int shares = num_shares(num_threads, images.size());
  const size_t bytes = share_bytes(images, channels, half, in_rounds);
  check_views(features, scratch, bytes * shares, outputs);
  require(num_merges.numel() == static_cast<int64_t>(images.size()), "merge_regions: num_merges is not [B]");
  require(!region_mask || (region_mask->is_contiguous() && region_mask->numel() == features.shape[0]),
          "merge_regions: region_mask is not contiguous [T]");
  const ChannelLoops& chosen = loops_named(loops);
  mask_ops::parallel_for(images.size(), 1, shares, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Image& image = images[i];
      const int64_t num_regions = image.height * image.width;
      const Share share(scratch.as<char>() + bytes * thread, num_regions, grid_edges_bound(image), channels,
                        half, true, in_rounds);
      const bool* mask = region_mask ? region_mask->as<bool>() + image.start : nullptr;
      const int32_t num_edges = write_grid_edges(image, mask, share.edges);
      merge_rows(features, image.start, num_regions, share.edges, num_edges, min_similarity, chosen, share,
                 outputs, i);
    }
  });
}

void merge_regions_graph_cpu(const TensorView& features, const TensorView& edges, float min_similarity,
                             const std::string& loops, const TensorView& scratch, const TensorView& merges,
                             const TensorView& similarity, const TensorView& num_merges,
                             const std::optional<TensorView>& heights) {
  const Outputs outputs = {merges, similarity, num_merges, heights};
  const int64_t num_regions = features.shape[0], num_edges = edges.shape[0];
  require(edges.dtype == DType::kInt32 && edges.is_contiguous() && edges.numel() == 2 * num_edges &&
              num_edges < (1 << 28),
          "merge_regions: edges are not contiguous int32 [E, 2]");
  const Share share(scratch.data, num_regions, num_edges, features.shape[1], is_half(features), false,
                    heights.has_value());
  check_views(features, scratch, share.bytes, outputs);
  require(num_merges.numel() == 1, "merge_regions: num_merges is not [1]");
  merge_rows(features, 0, num_regions, edges.as<int32_t>(), num_edges, min_similarity, loops_named(loops),
             share, outputs, 0);
}

std::vector<std::string> merge_regions_loops() {
  std::vector<std::string> names;
  for (const ChannelLoops& loops : merging::channel_loops()) names.emplace_back(loops.name);
  return names;
}

}  // namespace sohes
