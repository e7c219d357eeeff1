// Two floats as one number: the functions of genkern/math.h, and Lanes as in genkern/normal.h.
//
// From sm_100 on one instruction multiplies or adds both, rounding each as it would alone; a float
// in place of an operand costs nothing. What else there is takes one instruction for each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "genkern/math.h"
#include "genkern/normal.h"

namespace genkern {

struct Pair {
  float x, y;

  Pair() = default;
  __device__ __forceinline__ Pair(float both) : x(both), y(both) {}
  __device__ __forceinline__ Pair(float x, float y) : x(x), y(y) {}
#if defined(__CUDACC__)
  __device__ __forceinline__ Pair(float2 p) : x(p.x), y(p.y) {}
  __device__ __forceinline__ operator float2() const { return {x, y}; }
#endif
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kPairInstructions = true;
__device__ __forceinline__ Pair operator*(Pair a, Pair b) { return __fmul2_rn(a, b); }
__device__ __forceinline__ Pair operator+(Pair a, Pair b) { return __fadd2_rn(a, b); }
__device__ __forceinline__ Pair madd(Pair a, Pair b, Pair c) { return __ffma2_rn(a, b, c); }
#else
constexpr bool kPairInstructions = false;
__device__ __forceinline__ Pair operator*(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }
__device__ __forceinline__ Pair operator+(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }
__device__ __forceinline__ Pair madd(Pair a, Pair b, Pair c) {
  return {madd(a.x, b.x, c.x), madd(a.y, b.y, c.y)};
}
#endif
__device__ __forceinline__ Pair operator-(Pair a) { return {-a.x, -a.y}; }
__device__ __forceinline__ Pair operator-(Pair a, Pair b) { return a + -b; }
__device__ __forceinline__ Pair& operator+=(Pair& a, Pair b) { return a = a + b; }
__device__ __forceinline__ Pair& operator-=(Pair& a, Pair b) { return a = a - b; }
__device__ __forceinline__ Pair& operator*=(Pair& a, Pair b) { return a = a * b; }

__device__ __forceinline__ Pair select_less(Pair a, Pair b, Pair x, Pair y) {
  return {select_less(a.x, b.x, x.x, y.x), select_less(a.y, b.y, x.y, y.y)};
}
__device__ __forceinline__ Pair at_least(Pair a, Pair low) {
  return {at_least(a.x, low.x), at_least(a.y, low.y)};
}
__device__ __forceinline__ Pair at_most(Pair a, Pair high) {
  return {at_most(a.x, high.x), at_most(a.y, high.y)};
}
__device__ __forceinline__ Pair magnitude(Pair a) { return {magnitude(a.x), magnitude(a.y)}; }
#if defined(__CUDA_ARCH__)
__device__ __forceinline__ Pair approximate_inverse(Pair a) {
  return {approximate_inverse(a.x), approximate_inverse(a.y)};
}
__device__ __forceinline__ Pair ratio(Pair a, Pair b) { return corrected_ratio(a, b); }
#else
__device__ __forceinline__ Pair ratio(Pair a, Pair b) { return {a.x / b.x, a.y / b.y}; }
// On a CPU these of a float are not the general templates.
__device__ __forceinline__ Pair root_exp(Pair a) { return {root_exp(a.x), root_exp(a.y)}; }
__device__ __forceinline__ Expm1<Pair> expm1(Pair a) {
  const Expm1<float> x = expm1(a.x), y = expm1(a.y);
  return {{x.value, y.value}, {x.minus_x, y.minus_x}};
}
#endif
__device__ __forceinline__ Pair exp(Pair a) { return {exp(a.x), exp(a.y)}; }
__device__ __forceinline__ Pair exp2_fast(Pair a) { return {exp2_fast(a.x), exp2_fast(a.y)}; }

struct PairLanes {
  using F = Pair;
  struct U {
    uint32_t x, y;
    friend __device__ __forceinline__ U operator-(U a, U b) { return {a.x - b.x, a.y - b.y}; }
    friend __device__ __forceinline__ U operator-(U a, uint32_t b) { return {a.x - b, a.y - b}; }
    friend __device__ __forceinline__ U operator+(U a, U b) { return {a.x + b.x, a.y + b.y}; }
    friend __device__ __forceinline__ U operator&(U a, uint32_t b) { return {a.x & b, a.y & b}; }
    friend __device__ __forceinline__ U operator^(U a, U b) { return {a.x ^ b.x, a.y ^ b.y}; }
    friend __device__ __forceinline__ U operator<<(U a, int n) { return {a.x << n, a.y << n}; }
  };
  using One = ScalarLanes;

  static __device__ __forceinline__ F unit_interval(U x) {
#if defined(__CUDA_ARCH__)
    return to_float(x) + 0.5f;
#else
    return {One::unit_interval(x.x), One::unit_interval(x.y)};
#endif
  }
  static __device__ __forceinline__ F quarter_turns(U y) {
    return fma(to_float(y), 0x1p-30f, 0x1p-31f);
  }
  static __device__ __forceinline__ F to_float(U a) {
    return {One::to_float(a.x), One::to_float(a.y)};
  }
  static __device__ __forceinline__ F signed_to_float(U a) {
    return {One::signed_to_float(a.x), One::signed_to_float(a.y)};
  }
  static __device__ __forceinline__ F fma(F a, F b, F c) {
#if defined(__CUDA_ARCH__)
    return madd(a, b, c);
#else
    return {One::fma(a.x, b.x, c.x), One::fma(a.y, b.y, c.y)};
#endif
  }
  static __device__ __forceinline__ F sqrt(F a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ <= 1000
    return refined_root<PairLanes>(a, {One::inverse_root(a.x), One::inverse_root(a.y)});
#else
    return {One::sqrt(a.x), One::sqrt(a.y)};
#endif
  }
#if defined(__CUDA_ARCH__)
  // None of pairs saturates.
  static __device__ __forceinline__ F saturated_fma(F a, F b, F c) {
    return {One::saturated_fma(a.x, b.x, c.x), One::saturated_fma(a.y, b.y, c.y)};
  }
#endif
  static __device__ __forceinline__ F as_float(U a) {
    return {One::as_float(a.x), One::as_float(a.y)};
  }
  static __device__ __forceinline__ U as_uint(F a) {
    return {One::as_uint(a.x), One::as_uint(a.y)};
  }
  static __device__ __forceinline__ F broadcast(float a) { return a; }
  static __device__ __forceinline__ F select(U mask, F a, F b) {
    return {One::select(mask.x, a.x, b.x), One::select(mask.y, a.y, b.y)};
  }
};

// The normals of a block, times `factor`.
__device__ __forceinline__ void normal4(const Words& b, float factor, Pair& first, Pair& second) {
  Pair r, cosine, sine;
  polar<PairLanes>({b.w[0], b.w[2]}, {b.w[1], b.w[3]}, r, cosine, sine);
  r *= factor;
  first = Pair(r.x) * Pair(cosine.x, sine.x);
  second = Pair(r.y) * Pair(cosine.y, sine.y);
}

}  // namespace genkern
