// IEEE-754 binary16 as CUDA names it. Conversions round to the nearest, ties to even.
#pragma once

#include "cuda_runtime.h"

namespace cuda_on_host {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // As a float's bits the number is 2^112 times too small, also where it is subnormal.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7fffu);
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (rest < 0x38800000u) {
    // Below 2^-14, where a half's last place is 2^-24: adding 0.5 leaves a float that many.
    const float shifted = __uint_as_float(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (__float_as_uint(shifted) - __float_as_uint(0.5f)));
  }
  const uint32_t odd = rest >> 13 & 1u;
  return static_cast<uint16_t>(sign | (rest - (112u << 23) + 0xfffu + odd) >> 13);
}

}  // namespace cuda_on_host

struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float x) : bits(cuda_on_host::float_to_half(x)) {}
  operator float() const { return cuda_on_host::half_to_float(bits); }
};
struct __half2 {
  __half x, y;
};

inline float __half2float(__half x) { return x; }
inline __half __ushort_as_half(unsigned short bits) { return cuda_on_host::bit_cast<__half>(bits); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
