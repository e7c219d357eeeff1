// Ranges of a key's stream: out[i] = number `first + i`, for the instruction set of this file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/lanes.h"
#include "genkern/normal.h"
#include "genkern/philox.h"

namespace genkern::GENKERN_CAPABILITY {

// Memory that is needed right after some numbers, asked for while they are computed: a few lines
// with each batch, since a processor waits once some twenty are on their way.
class Ahead {
 public:
  static constexpr int kMost = 8;

  // `bytes` for each of the numbers.
  void add(const char* at, int64_t bytes) { ranges_[count_++] = {at, at, bytes}; }

  void advance(int64_t numbers) {
    for (int i = 0; i < count_; ++i) {
      Range& range = ranges_[i];
      range.end += numbers * range.bytes;
      for (; range.at < range.end; range.at += 64) __builtin_prefetch(range.at);
    }
  }

 private:
  struct Range {
    const char *at, *end;
    int64_t bytes;
  };
  Range ranges_[kMost];
  int count_ = 0;
};

struct Normal {
  static void block(Words b, float* out) {
    const Normals n = normal4(b);
    std::memcpy(out, n.z, sizeof n.z);
  }
  static void block(Words b, double* out) {
    const Normals64 n = normal2(b);
    std::memcpy(out, n.z, sizeof n.z);
  }
#if defined(GENKERN_VECTORS)
  template <class L>
  static GENKERN_HD void pairs(typename L::U x, typename L::U y, typename L::F& a,
                               typename L::F& b) {
    box_muller<L>(x, y, a, b);
  }
#endif
};

struct Uniform {
  static void block(Words b, float* out) {
    for (int i = 0; i < 4; ++i) out[i] = uniform_float(b.w[i]);
  }
  static void block(Words b, double* out) {
    out[0] = uniform_double(b.w[0], b.w[1]);
    out[1] = uniform_double(b.w[2], b.w[3]);
  }
#if defined(GENKERN_VECTORS)
  template <class L>
  static GENKERN_HD void pairs(typename L::U x, typename L::U y, typename L::F& a,
                               typename L::F& b) {
    const typename L::F scale = L::broadcast(0x1p-24f);
    a = L::signed_to_float(x & 0x00ffffffu) * scale;
    b = L::signed_to_float(y & 0x00ffffffu) * scale;
  }
#endif
};

#if defined(GENKERN_VECTORS)

// Philox for batches of blocks whose counters share their high word. The first three rounds are
// shortened: with c2 = c3 = 0 they multiply by constants, which are folded in here.
class Philox {
 public:
  using L = Lanes;
  using Wide = L::Wide;

  Philox(Key key, uint32_t counter_high) {
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int r = 0; r < kPhiloxRounds; ++r) {
      keys_[r][0] = L::wide(k0);
      keys_[r][1] = L::wide(k1);
      if (r == 0) {
        const uint64_t p = static_cast<uint64_t>(kPhiloxM0) * (counter_high ^ k0);
        second_ = static_cast<uint32_t>(p >> 32);
        third_ = static_cast<uint32_t>(p);
      }
      if (r == 1) keys_[r][1] = L::wide(k1 ^ second_);
      if (r == 2) keys_[r][1] = L::wide(k1 ^ third_);
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
    // The last round builds words 0 and 2 in one vector.
    keys_[kPhiloxRounds - 1][0] =
        L::low_high(keys_[kPhiloxRounds - 1][0], L::to_high(keys_[kPhiloxRounds - 1][1]));
  }

  // The first products of the batch that starts at a counter; those of the next batch are these
  // plus `step`: an addition instead of a multiplication.
  static Wide first_products(uint32_t counter) {
    return L::mul(L::add(L::wide(counter), L::order()), L::wide(kPhiloxM0));
  }
  static Wide step() { return L::wide(static_cast<uint64_t>(kPhiloxM0) * L::kBlocks); }

  // x: words 0 and 2, y: words 1 and 3 of the blocks of G batches. Advances `products`.
  template <int G>
  GENKERN_HD void operator()(Wide& products, L::U (&x)[G], L::U (&y)[G]) const {
    const Wide m0 = L::wide(kPhiloxM0), m1 = L::wide(kPhiloxM1);
    Wide c0[G], c1[G], c2[G], c3[G];
    for (int g = 0; g < G; ++g) {
      c1[g] = L::mul(L::xor2(L::high(products), keys_[0][1]), m1);
      c2[g] = L::xor2(products, keys_[1][1]);
      products = L::add(products, step());
    }
    for (int g = 0; g < G; ++g) c0[g] = L::xor2(L::high(c1[g]), keys_[1][0]);
    for (int g = 0; g < G; ++g) {
      const Wide p0 = L::mul(c0[g], m0), p1 = L::mul(c2[g], m1);
      c0[g] = L::xor3(L::high(p1), c1[g], keys_[2][0]);
      c1[g] = p1;
      c2[g] = L::xor2(L::high(p0), keys_[2][1]);
      c3[g] = p0;
    }
    for (int r = 3; r < kPhiloxRounds - 1; ++r) {
      for (int g = 0; g < G; ++g) {
        const Wide p0 = L::mul(c0[g], m0), p1 = L::mul(c2[g], m1);
        c0[g] = L::xor3(L::high(p1), c1[g], keys_[r][0]);
        c1[g] = p1;
        c2[g] = L::xor3(L::high(p0), c3[g], keys_[r][1]);
        c3[g] = p0;
      }
    }
    for (int g = 0; g < G; ++g) {
      const Wide p0 = L::mul(c0[g], m0), p1 = L::mul(c2[g], m1);
      x[g] = L::words(L::xor3(L::low_high(L::high(p1), p0), L::low_high(c1[g], L::to_high(c3[g])),
                              keys_[kPhiloxRounds - 1][0]));
      y[g] = L::words(L::low_high(p1, L::to_high(p0)));
    }
  }

 private:
  Wide keys_[kPhiloxRounds][2];
  uint32_t second_, third_;
};

// The words of N batches of blocks, and the numbers they become.
template <int N>
struct Batches {
  using L = PackLanes<Lanes, N>;
  static constexpr int kBlocks = N * Lanes::kBlocks;
  typename L::U x, y;

  GENKERN_HD Batches(const Philox& philox, Lanes::Wide& products) { philox(products, x.v, y.v); }
  template <class Kind>
  GENKERN_HD void write(float* out) const {
    typename L::F a, b;
    Kind::template pairs<L>(x, y, a, b);
    for (int i = 0; i < N; ++i) Lanes::interleave(a.v[i], b.v[i], out + i * 4 * Lanes::kBlocks);
  }
};

#endif

// Whole blocks: blocks first .. first + count - 1 of the stream.
template <class Kind, class T>
inline void fill_blocks(Key key, uint64_t first, int64_t count, T* out,
                        [[maybe_unused]] Ahead& ahead) {
  constexpr int kNumbers = sizeof(T) == 8 ? 2 : 4;
#if defined(GENKERN_VECTORS)
  if constexpr (sizeof(T) == 4) {
    while (count > 0) {
      const uint64_t n = key.offset + first;
      const uint32_t low = static_cast<uint32_t>(n);
      // As far as the counter's low word does not carry.
      const int64_t run = std::min<int64_t>(count, (int64_t{1} << 32) - low);
      const Philox philox(key, static_cast<uint32_t>(n >> 32));
      Lanes::Wide products = Philox::first_products(low);
      using Few = Batches<1>;
      using Many = Batches<Lanes::kUnroll>;
      int64_t i = 0;
      if (Lanes::kOverlap && run >= Many::kBlocks) {
        ahead.advance(4 * Many::kBlocks);
        Many words(philox, products);
        for (; i + 2 * Many::kBlocks <= run; i += Many::kBlocks) {
          ahead.advance(4 * Many::kBlocks);
          const Many next(philox, products);
          words.template write<Kind>(out + 4 * i);
          words = next;
        }
        words.template write<Kind>(out + 4 * i);
        i += Many::kBlocks;
      }
      for (; i + Many::kBlocks <= run; i += Many::kBlocks) {
        ahead.advance(4 * Many::kBlocks);
        Many(philox, products).template write<Kind>(out + 4 * i);
      }
      for (; i + Few::kBlocks <= run; i += Few::kBlocks) {
        ahead.advance(4 * Few::kBlocks);
        Few(philox, products).template write<Kind>(out + 4 * i);
      }
      if (i < run) {
        float rest[4 * Few::kBlocks];
        Few(philox, products).template write<Kind>(rest);
        std::copy_n(rest, 4 * (run - i), out + 4 * i);
      }
      first += static_cast<uint64_t>(run);
      out += 4 * run;
      count -= run;
    }
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) {
    Kind::block(philox_block(key, first + static_cast<uint64_t>(i)), out + kNumbers * i);
  }
}

// Numbers first .. first + count - 1 of the stream.
template <class Kind, class T>
inline void fill(Key key, uint64_t first, int64_t count, T* out, Ahead& ahead) {
  constexpr uint64_t kNumbers = sizeof(T) == 8 ? 2 : 4;
  T block[kNumbers];
  if (const uint64_t skip = first % kNumbers; skip != 0 && count > 0) {
    Kind::block(philox_block(key, first / kNumbers), block);
    const int64_t n = std::min<int64_t>(count, static_cast<int64_t>(kNumbers - skip));
    std::copy_n(block + skip, n, out);
    first += static_cast<uint64_t>(n);
    out += n;
    count -= n;
  }
  const int64_t whole = count / static_cast<int64_t>(kNumbers);
  fill_blocks<Kind>(key, first / kNumbers, whole, out, ahead);
  const int64_t done = whole * static_cast<int64_t>(kNumbers);
  if (done < count) {
    Kind::block(philox_block(key, first / kNumbers + static_cast<uint64_t>(whole)), block);
    std::copy_n(block, count - done, out + done);
  }
}

}  // namespace genkern::GENKERN_CAPABILITY
