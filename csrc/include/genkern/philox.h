// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011.
//
// Block i of the stream with key (seed, offset) has the counter words (lo, hi) of
// (offset + i) mod 2^64, then 0, 0, and the key words (lo, hi) of seed. PyTorch's stateless
// generator numbers its blocks the same way.
#pragma once

#include <cstdint>

#include "genkern/host_device.h"

namespace genkern {

// The multipliers and the key increments (golden ratio, sqrt(3) - 1) of the paper, section 3.
constexpr uint32_t kPhiloxM0 = 0xD2511F53;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85;
constexpr int kPhiloxRounds = 10;

struct Key {
  uint64_t seed, offset;
};

struct Words {
  uint32_t w[4];
};

GENKERN_HD uint64_t wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  // One instruction; of the C++ expression nvcc makes a 64-bit product, with an addition more.
  uint64_t p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b));
  return p;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

// The key words of a round.
struct RoundKey {
  uint32_t k0, k1;
};
GENKERN_HD RoundKey round_key(uint64_t seed, uint32_t round) {
  return {static_cast<uint32_t>(seed) + round * kPhiloxW0,
          static_cast<uint32_t>(seed >> 32) + round * kPhiloxW1};
}

// `keys(r)` is the key of round r.
template <class Keys>
GENKERN_HD Words philox(uint64_t counter, Keys keys) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = 0, c3 = 0;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = wide_product(kPhiloxM0, c0);
    const uint64_t p1 = wide_product(kPhiloxM1, c2);
    const RoundKey key = keys(round);
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key.k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key.k1;
    c3 = static_cast<uint32_t>(p0);
  }
  return {{c0, c1, c2, c3}};
}

// Block `index` of a key's stream.
GENKERN_HD Words philox_block(Key key, uint64_t index) {
  return philox(key.offset + index, [&](int round) { return round_key(key.seed, round); });
}

// Child `index` of a key: `split(key, n)[index]`.
GENKERN_HD Key fold_in(Key key, uint64_t index) {
  const Words b = philox_block(key, index);
  return {b.w[0] | static_cast<uint64_t>(b.w[1]) << 32, b.w[2] | static_cast<uint64_t>(b.w[3])
                                                                     << 32};
}

}  // namespace genkern
