// What one thread sees of one slot: a few neighbours of every operand, in the arithmetic type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "cuda/pair.cuh"
#include "cuda/position.cuh"
#include "genkern/math.h"
#include "genkern/normal.h"

namespace genkern::cuda {

template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

template <class T>
__device__ __forceinline__ auto widen(T x) {
  return static_cast<typename Arithmetic<T>::type>(x);
}
template <class T>
__device__ __forceinline__ T narrow(typename Arithmetic<T>::type x) {
  return static_cast<T>(x);
}

// One sample of a plan of Walk::kFlat, as a plan of its own. kKeeps: its addresses stay in
// registers, where the compiler would work them out again in every slot to save some.
template <class T, bool kKeeps, class Whole>
struct SamplePlan {
  enum { kScale = Whole::kScale, kKey, kIndex, kOperands };

  __device__ SamplePlan(const Whole& plan, int64_t sample) : whole(plan) {
#pragma unroll
    for (int i = 0; i < kScale; ++i) {
      tensor[i] = static_cast<T*>(plan.tensor[i]) + sample * plan.sample_stride[i];
#if defined(__CUDA_ARCH__)
      if constexpr (kKeeps) {
        size_t address = __cvta_generic_to_global(tensor[i]);
        asm("" : "+l"(address));
        tensor[i] = __cvta_global_to_generic(address);
      }
#endif
    }
    scale = static_cast<const typename Arithmetic<T>::type*>(plan.scale) +
            sample * plan.sample_stride[kScale];
  }
  __device__ bool has(int i) const { return whole.has(i); }

  const Whole& whole;
  void* tensor[kScale];
  const void* scale;
};

// 16 bytes, one access: of a struct of T the compiler might make several.
using Pack = uint4;
template <class T>
constexpr int kPackLanes = sizeof(Pack) / sizeof(T);

__device__ __forceinline__ void unpack(Pack pack, float (&x)[4], float) {
  x[0] = __uint_as_float(pack.x);
  x[1] = __uint_as_float(pack.y);
  x[2] = __uint_as_float(pack.z);
  x[3] = __uint_as_float(pack.w);
}
__device__ __forceinline__ void unpack(Pack pack, double (&x)[2], double) {
  x[0] = __hiloint2double(pack.y, pack.x);
  x[1] = __hiloint2double(pack.w, pack.z);
}
// A bfloat16 is the upper half of a float.
__device__ __forceinline__ void unpack(Pack pack, float (&x)[8], __nv_bfloat16) {
  const uint32_t words[] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ void unpack(Pack pack, float (&x)[8], __half) {
  const uint32_t words[] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i])));
    x[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] >> 16)));
  }
}

__device__ __forceinline__ Pack pack(const float (&x)[4], float) {
  return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
          __float_as_uint(x[3])};
}
__device__ __forceinline__ Pack pack(const double (&x)[2], double) {
  return {static_cast<unsigned>(__double2loint(x[0])), static_cast<unsigned>(__double2hiint(x[0])),
          static_cast<unsigned>(__double2loint(x[1])), static_cast<unsigned>(__double2hiint(x[1]))};
}
// Two conversions are one instruction.
__device__ __forceinline__ uint32_t narrow_two(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &two, sizeof bits);
  return bits;
}
__device__ __forceinline__ uint32_t narrow_two(float low, float high, __half) {
  const __half2 two = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &two, sizeof bits);
  return bits;
}
template <class T>
__device__ __forceinline__ Pack pack(const float (&x)[8], T type) {
  return {narrow_two(x[0], x[1], type), narrow_two(x[2], x[3], type), narrow_two(x[4], x[5], type),
          narrow_two(x[6], x[7], type)};
}

// Numbers of the arithmetic type that a Philox block gives.
template <class Acc>
constexpr int kBlockElements = sizeof(Acc) == 8 ? 2 : 4;

// Number j of a block.
template <class Acc>
__device__ __forceinline__ Acc block_uniform(const Words& b, int j) {
  if constexpr (kBlockElements<Acc> == 2) {
    return uniform_double(j ? b.w[2] : b.w[0], j ? b.w[3] : b.w[1]);
  } else {
    const uint32_t even = j & 2 ? b.w[2] : b.w[0], odd = j & 2 ? b.w[3] : b.w[1];
    return uniform_float(j & 1 ? odd : even);
  }
}
// Element `index` of a key's stream.
template <class Acc>
__device__ Acc uniform_at(Key key, uint64_t index) {
  constexpr int kBlock = kBlockElements<Acc>;
  return block_uniform<Acc>(philox_block(key, index / kBlock), index % kBlock);
}

// The stream of a key, its round keys worked out.
struct Stream {
  RoundKey keys[kPhiloxRounds];
  uint64_t offset;
  __device__ Words block(uint64_t counter) const {
    return philox(counter, [&](int round) { return keys[round]; });
  }
};

template <class T, class Position, class PlanType>
class Slot {
 public:
  using Acc = typename Arithmetic<T>::type;
  using Exp = std::conditional_t<sizeof(T) == 2, HalfExp, FullExp>;
  static constexpr int kLanes = Position::kLanes;
  // The lanes as the arithmetic takes them: two floats at a time where there are several.
  static constexpr bool kPairs = kLanes > 1 && sizeof(Acc) == 4;
  using Number = std::conditional_t<kPairs, Pair, Acc>;
  static constexpr int kNumbers = kPairs ? kLanes / 2 : kLanes;
  using Numbers = Number[kNumbers];

  // `stream`, the sample's, is read where the position is flat.
  __device__ Slot(const PlanType& plan, const Stream& stream, int64_t sample, int64_t index)
      : plan_(plan), stream_(stream), position_(plan, sample, index) {
    if constexpr (!Position::kFlat) {
      const int64_t left = plan.row - position_.column();
      count_ = left < kLanes ? static_cast<int>(left) : kLanes;
      packed_ = plan.aligned && count_ == kLanes;
    }
  }

  __device__ int64_t repeats() const { return position_.repeats(); }
  __device__ bool has(int i) const { return plan_.has(i); }
  __device__ int count() const { return count_; }  // lanes that exist

  template <class N>  // const or not
  static __device__ auto& lane(N& x, int v) {
    if constexpr (kPairs) {
      return v % 2 ? x[v / 2].y : x[v / 2].x;
    } else {
      return x[v];
    }
  }

  __device__ void load(int i, Numbers& x, int64_t repeat = 0) const {
    const T* p = position_.template pointer<T>(i, repeat);
    if constexpr (kLanes == 1) {
      x[0] = widen(*p);
    } else if (broadcasts(i)) {
      fill(widen(*p), x);
    } else if (packed_) {
      fill(*reinterpret_cast<const Pack*>(p), x);
    } else {
#pragma unroll
      for (int v = 0; v < kLanes; ++v) lane(x, v) = v < count_ ? widen(p[v]) : Acc(0);
    }
  }

  __device__ void load_or(int i, Acc fallback, Numbers& x, int64_t repeat = 0) const {
    if (has(i)) {
      load(i, x, repeat);
    } else {
      fill(fallback, x);
    }
  }
  __device__ void load_or_zero(int i, Numbers& x, int64_t repeat = 0) const {
    if constexpr (Position::kFlat && kLanes > 1) {
      // Zeros before they are unpacked are fewer.
      Pack pack{};
      if (has(i)) pack = *reinterpret_cast<const Pack*>(position_.template pointer<T>(i, repeat));
      fill(pack, x);
    } else {
      load_or(i, Acc(0), x, repeat);
    }
  }

  // The upstream gradient: tensor i, or the reduced value's times `factor`, the same for the slot.
  __device__ void load_upstream(int i, Acc factor, Numbers& g) const {
    if (has(i)) {
      load(i, g);
    } else {
      fill(static_cast<const Acc*>(plan_.scale)[position_.offset(PlanType::kScale, 0)] * factor, g);
    }
  }

  static __device__ void fill(Acc value, Numbers& x) {
#pragma unroll
    for (int v = 0; v < kNumbers; ++v) x[v] = value;
  }
  static __device__ void fill(Pack pack, Numbers& x) {
    Acc lanes[kLanes];
    unpack(pack, lanes, T{});
#pragma unroll
    for (int v = 0; v < kLanes; ++v) lane(x, v) = lanes[v];
  }

  __device__ void store(int i, const Numbers& x, int64_t repeat = 0) const {
    T* p = position_.template pointer<T>(i, repeat);
    if constexpr (kLanes == 1) {
      *p = narrow<T>(x[0]);
    } else if (packed_) {
      Acc lanes[kLanes];
#pragma unroll
      for (int v = 0; v < kLanes; ++v) lanes[v] = lane(x, v);
      *reinterpret_cast<Pack*>(p) = pack(lanes, T{});
    } else {
#pragma unroll
      for (int v = 0; v < kLanes; ++v)
        if (v < count_) p[v] = narrow<T>(lane(x, v));
    }
  }

  // Times `factor`.
  __device__ void normals(Numbers& z, int64_t repeat = 0, Acc factor = 1) const {
    if constexpr (kPairs) {
#pragma unroll
      for (int v = 0; v < kNumbers; v += 2) normal4(block(repeat, 2 * v), factor, z[v], z[v + 1]);
    } else if constexpr (kBlock == 2) {
      const Normals64 n = normal2(block(repeat, 0));
      if constexpr (kLanes == 2) {
        z[0] = factor * n.z[0];
        z[1] = factor * n.z[1];
      } else {
        z[0] = factor * (number(repeat) ? n.z[1] : n.z[0]);
      }
    } else {
      const Words b = block(repeat, 0);
      const int j = number(repeat);
      float r, cosine, sine;
      polar<ScalarLanes>(j & 2 ? b.w[2] : b.w[0], j & 2 ? b.w[3] : b.w[1], r, cosine, sine);
      z[0] = r * factor * (j & 1 ? sine : cosine);  // in normal4's order
    }
  }

  __device__ void uniforms(Numbers& u) const {
    if constexpr (kLanes > 1) {
#pragma unroll
      for (int v = 0; v < kLanes; v += kBlock) {
        const Words b = block(0, v);
#pragma unroll
        for (int j = 0; j < kBlock; ++j) lane(u, v + j) = block_uniform<Acc>(b, j);
      }
    } else {
      u[0] = block_uniform<Acc>(block(0, 0), number(0));
    }
  }

  // The sum over the lanes that exist: of the two halves, then of theirs.
  __device__ Acc sum(const Numbers& x) const {
    Numbers s;
#pragma unroll
    for (int v = 0; v < kNumbers; ++v) s[v] = x[v];
    if (!Position::kFlat && kLanes > 1 && count_ < kLanes) {
#pragma unroll
      for (int v = 0; v < kLanes; ++v)
        if (v >= count_) lane(s, v) = Acc(0);
    }
#pragma unroll
    for (int width = kNumbers / 2; width > 0; width /= 2)
#pragma unroll
      for (int v = 0; v < width; ++v) s[v] += s[v + width];
    if constexpr (kPairs) {
      return s[0].x + s[0].y;
    } else {
      return s[0];
    }
  }

 private:
  static constexpr int kBlock = kBlockElements<Acc>;

  __device__ bool broadcasts(int i) const {
    if constexpr (Position::kFlat)
      return false;
    else
      return plan_.row_stride[i] == 0;
  }
  __device__ uint64_t element(int64_t repeat) const {
    return position_.offset(PlanType::kIndex, repeat);
  }
  __device__ int number(int64_t repeat) const { return element(repeat) % kBlock; }
  __device__ Words block(int64_t repeat, int lane) const {
    if constexpr (Position::kFlat) {
      return stream_.block(position_.template block_from<kBlock>(stream_.offset, lane));
    } else {
      return philox_block(plan_.key_at(position_.offset(PlanType::kKey, repeat)),
                          position_.template block<kBlock>(repeat, lane));
    }
  }

  const PlanType& plan_;
  const Stream& stream_;
  Position position_;
  int count_ = kLanes;
  bool packed_ = true;
};

// How many blocks of a kernel must find registers on a multiprocessor: more than 1 where the
// compiler would take a few more, and a whole block from what is in flight, to save hardly an
// instruction.
template <class Body, class T, Walk kWalk>
constexpr int kBlocks = 1;
// Whether a kernel that reads numbers of a sample keeps its addresses, see SamplePlan: not
// where the registers for them would cost a whole block.
template <class Body, class T>
constexpr bool kKept = true;
// Whose code takes the fewest registers: what fits them there may spill on others.
#if defined(__CUDA_ARCH__)
constexpr bool kAmpere = __CUDA_ARCH__ < 900;
#else
constexpr bool kAmpere = false;
#endif

}  // namespace genkern::cuda
