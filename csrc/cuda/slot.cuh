// What one thread sees of one slot: a few neighbours of every operand, in the arithmetic type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

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

// One sample of a plan of Walk::kFlat, as a plan of its own.
template <class T, class Whole>
struct SamplePlan {
  enum { kScale = Whole::kScale, kKey, kIndex, kOperands };

  __device__ SamplePlan(const Whole& plan, int64_t sample) : whole(plan) {
#pragma unroll
    for (int i = 0; i < kScale; ++i)
      tensor[i] = static_cast<T*>(plan.tensor[i]) + sample * plan.sample_stride[i];
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
  return __bfloat16_as_ushort(two.x) | static_cast<uint32_t>(__bfloat16_as_ushort(two.y)) << 16;
}
__device__ __forceinline__ uint32_t narrow_two(float low, float high, __half) {
  const __half2 two = __floats2half2_rn(low, high);
  return __half_as_ushort(two.x) | static_cast<uint32_t>(__half_as_ushort(two.y)) << 16;
}
template <class T>
__device__ __forceinline__ Pack pack(const float (&x)[8], T type) {
  return {narrow_two(x[0], x[1], type), narrow_two(x[2], x[3], type), narrow_two(x[4], x[5], type),
          narrow_two(x[6], x[7], type)};
}

// Numbers of the arithmetic type that a Philox block gives.
template <class Acc>
constexpr int kBlockElements = sizeof(Acc) == 8 ? 2 : 4;

template <class Acc>
__device__ __forceinline__ auto block_normals(const Words& b) {
  if constexpr (kBlockElements<Acc> == 2) {
    return normal2(b);
  } else {
    return normal4(b);
  }
}

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
  __device__ Words block(uint64_t index) const {
    return philox(offset + index, [&](int round) { return keys[round]; });
  }
};

template <class T, class Position, class PlanType>
class Slot {
 public:
  using Acc = typename Arithmetic<T>::type;
  using Exp = std::conditional_t<sizeof(T) == 2, HalfExp, FullExp>;
  static constexpr int kLanes = Position::kLanes;

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

  __device__ void load(int i, Acc (&x)[kLanes], int64_t repeat = 0) const {
    const T* p = position_.template pointer<T>(i, repeat);
    if constexpr (kLanes == 1) {
      x[0] = widen(*p);
    } else if (broadcasts(i)) {
      fill(widen(*p), x);
    } else if (packed_) {
      unpack(*reinterpret_cast<const Pack*>(p), x, T{});
    } else {
#pragma unroll
      for (int v = 0; v < kLanes; ++v) x[v] = v < count_ ? widen(p[v]) : Acc(0);
    }
  }

  __device__ void load_or(int i, Acc fallback, Acc (&x)[kLanes], int64_t repeat = 0) const {
    if (has(i)) {
      load(i, x, repeat);
    } else {
      fill(fallback, x);
    }
  }

  // The upstream gradient: tensor i, or the reduced value's times `factor`, the same for the slot.
  __device__ void load_upstream(int i, Acc factor, Acc (&g)[kLanes]) const {
    if (has(i)) {
      load(i, g);
    } else {
      fill(static_cast<const Acc*>(plan_.scale)[position_.offset(PlanType::kScale, 0)] * factor, g);
    }
  }

  static __device__ void fill(Acc value, Acc (&x)[kLanes]) {
#pragma unroll
    for (int v = 0; v < kLanes; ++v) x[v] = value;
  }

  __device__ void store(int i, const Acc (&x)[kLanes], int64_t repeat = 0) const {
    T* p = position_.template pointer<T>(i, repeat);
    if constexpr (kLanes == 1) {
      *p = narrow<T>(x[0]);
    } else if (packed_) {
      *reinterpret_cast<Pack*>(p) = pack(x, T{});
    } else {
#pragma unroll
      for (int v = 0; v < kLanes; ++v)
        if (v < count_) p[v] = narrow<T>(x[v]);
    }
  }

  __device__ void normals(Acc (&z)[kLanes], int64_t repeat = 0) const {
    if constexpr (kLanes > 1) {
#pragma unroll
      for (int v = 0; v < kLanes; v += kBlock) {
        const auto n = block_normals<Acc>(block(repeat, v));
#pragma unroll
        for (int j = 0; j < kBlock; ++j) z[v + j] = n.z[j];
      }
    } else if constexpr (kBlock == 2) {
      const Normals64 n = normal2(block(repeat, 0));
      z[0] = lane(repeat) ? n.z[1] : n.z[0];
    } else {
      const Words b = block(repeat, 0);
      const int j = lane(repeat);
      float even, odd;
      box_muller<ScalarLanes>(j & 2 ? b.w[2] : b.w[0], j & 2 ? b.w[3] : b.w[1], even, odd);
      z[0] = j & 1 ? odd : even;
    }
  }

  __device__ void uniforms(Acc (&u)[kLanes]) const {
    if constexpr (kLanes > 1) {
#pragma unroll
      for (int v = 0; v < kLanes; v += kBlock) {
        const Words b = block(0, v);
#pragma unroll
        for (int j = 0; j < kBlock; ++j) u[v + j] = block_uniform<Acc>(b, j);
      }
    } else {
      u[0] = block_uniform<Acc>(block(0, 0), lane(0));
    }
  }

  // The sum over the lanes that exist, in pairs.
  __device__ Acc sum(const Acc (&x)[kLanes]) const {
    Acc s[kLanes];
#pragma unroll
    for (int v = 0; v < kLanes; ++v) s[v] = x[v];
    if (!Position::kFlat && kLanes > 1 && count_ < kLanes) {
#pragma unroll
      for (int v = 0; v < kLanes; ++v)
        if (v >= count_) s[v] = Acc(0);
    }
#pragma unroll
    for (int width = kLanes / 2; width > 0; width /= 2)
#pragma unroll
      for (int v = 0; v < width; ++v) s[v] += s[v + width];
    return s[0];
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
  __device__ int lane(int64_t repeat) const { return element(repeat) % kBlock; }
  __device__ Words block(int64_t repeat, int lane) const {
    const uint64_t index = position_.template block<kBlock>(repeat, lane);
    if constexpr (Position::kFlat) {
      return stream_.block(index);
    } else {
      return philox_block(plan_.key_at(position_.offset(PlanType::kKey, repeat)), index);
    }
  }

  const PlanType& plan_;
  const Stream& stream_;
  Position position_;
  int count_ = kLanes;
  bool packed_ = true;
};

}  // namespace genkern::cuda
