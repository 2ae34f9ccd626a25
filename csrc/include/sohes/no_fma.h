// SPDX-License-Identifier: Apache-2.0
// Include after all other headers: the code that follows rounds each product before it is added. No fused
// multiply-add, so that results are those of the references and do not depend on the processor.
#pragma once

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
