// Elementary functions on numbers of type T: float, double, or a CPU's vectors of floats (see
// csrc/cpu/lanes.h, which gives them the same primitives). Without branches: a loop over them, or a
// vector in place of a number, does the same to all.
//
// Single precision: own polynomials. double: the C library's functions, whose speed no op here
// depends on.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "genkern/host_device.h"
#include "genkern/normal.h"

namespace genkern {

// a * b + c, fused where the target has the instruction. Unlike in normal.h no bits are promised,
// and a software fma would cost more than all the rest.
GENKERN_HD float madd(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return ScalarLanes::fma(a, b, c);
#else
  return a * b + c;
#endif
}
GENKERN_HD double madd(double a, double b, double c) { return a * b + c; }

// x where a < b, else y.
template <class T>
GENKERN_HD T select_less(T a, T b, T x, T y) {
  return a < b ? x : y;
}
// Bounds that keep a NaN x.
template <class T>
GENKERN_HD T at_least(T x, T low) {
  return x < low ? low : x;
}
template <class T>
GENKERN_HD T at_most(T x, T high) {
  return x > high ? high : x;
}
#if defined(__CUDA_ARCH__)
// One instruction where the comparison and the selection are two.
GENKERN_HD float at_least(float x, float low) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(low));
  return x;
}
GENKERN_HD float at_most(float x, float high) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(high));
  return x;
}
#endif
template <class T>
GENKERN_HD T clamp(T x, T low, T high) {
  return at_most(at_least(x, low), high);
}
GENKERN_HD float magnitude(float x) { return std::fabs(x); }
GENKERN_HD double magnitude(double x) { return std::fabs(x); }

// a / b for a between 0 and 1, b between 1 and 3.
template <class T>
GENKERN_HD T ratio(T a, T b) {
  return a / b;
}
#if defined(__CUDA_ARCH__)
GENKERN_HD float approximate_inverse(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
// The approximate quotient with one of Newton's corrections, within 1 ulp. The operator minds
// overflow on the way to the quotient, for three times the instructions.
template <class T>
GENKERN_HD T corrected_ratio(T a, T b) {
  const T inverse = approximate_inverse(b);
  const T q = a * inverse;
  return madd(madd(-b, q, a), inverse, q);
}
GENKERN_HD float ratio(float a, float b) { return corrected_ratio(a, b); }
#endif

// e^(x/2) = 2^n (1 + q), q = e^r - 1 = r + w r, |r| <= ln(2) / 2. r and q are kept doubled, which
// saves the halving of x; no bit of the result depends on it.
template <class F>
struct ReducedRoot {
  F x;  // at most what makes 2^n infinite
  F n, r2, w, q2;
  F power;  // 2^(n-1)
  F value;
};

// e^(x/2) within 1.5 ulp, with overflow to infinity and NaN kept; below 2^-125 it is 0. L: the
// lanes of F, see normal.h.
template <class L, class F = typename L::F>
GENKERN_HD ReducedRoot<F> reduced_root(F argument) {
  const auto c = [](float f) { return L::broadcast(f); };
  // Beyond these the result is 0 or infinite all the same; the bounds keep n in [-126, 128].
  const F x = at_most(argument, c(178.0f));
  const F y = at_least(x, c(-175.0f));
  // n = round(y / (2 ln 2)) by the 1.5 * 2^23 trick, with 126 added; 2 ln 2 in two parts (Cody and
  // Waite), the first with 15 significant bits so that n times it is exact.
  const F shifted = madd(y, c(0x1.715476p-1f), c(12582912.0f + 126.0f));
  const F n = shifted - c(12582912.0f + 126.0f);
  const F r2 = madd(n, c(-0x1.7f7d1cp-19f), madd(n, c(-0x1.62e4p+0f), y));
  // w r2 / 2 = e^r - 1 - r. (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, exact at 0, minimax relative
  // to e^r (0.07 * 2^-24): 0.5 + 0.16666534543037415 r + 0.041667237877845764 r^2 + ..., here in 2
  // r and halved, by powers of two.
  F p = c(0.0013863786589354277f * 0x1p-5f);
  p = madd(p, r2, c(0.008367476053535938f * 0x1p-4f));
  p = madd(p, r2, c(0.041667237877845764f * 0x1p-3f));
  p = madd(p, r2, c(0.16666534543037415f * 0x1p-2f));
  p = madd(p, r2, c(0.5f * 0x1p-1f));
  const F w = p * r2;
  const F q2 = madd(w, r2, r2);
  // By 2 and 2^(n-1), which the exponent field holds up to n = 128; it is 0 at n = -126. Shifted
  // left, all that stays of `shifted` is n + 126.
  const F power = L::as_float(L::as_uint(shifted) << 23);
  return {x, n, r2, w, q2, power, (q2 + c(2.0f)) * power};
}
template <class L, class F = typename L::F>
GENKERN_HD F exp_single(F x) {
  return reduced_root<L>(x + x).value;
}
GENKERN_HD float exp(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);  // 1 ulp, a third of the instructions: ex2 in hardware after its own reduction
#else
  return exp_single<ScalarLanes>(x);
#endif
}
GENKERN_HD double exp(double x) { return ::exp(x); }
// e^-|x|.
template <class T>
GENKERN_HD T decay(T x) {
  return exp(-magnitude(x));
}

// e^(x/2).
template <class T>
GENKERN_HD T root_exp(T x) {
  return exp(T(0.5f) * x);
}
#if !defined(__CUDA_ARCH__)
template <>
GENKERN_HD float root_exp(float x) {
  return reduced_root<ScalarLanes>(x).value;
}
#endif

// Largest x whose e^x, and whose square root's square, is finite; whose 2^x is.
template <class T>
struct Limits {
  static constexpr float kLargest = 3.402823466e+38f;
  static constexpr float kLargestExponent = 88.0f, kLargestExponent2 = 127.0f;
};
template <>
struct Limits<double> {
  static constexpr double kLargest = 1.7976931348623157e+308;
  static constexpr double kLargestExponent = 709.0, kLargestExponent2 = 1023.0;
};

// e^x - 1, and e^x - 1 - x = x^2 / 2 + x^3 / 6 + ..., which cancels near 0 and is summed there.
// Limits: infinity at both ends for the second, infinity and -1 for the first.
template <class T>
struct Expm1 {
  T value, minus_x;
};
// (e^x - 1 - x) / y^2 of x = y * Unit::value on |x| < 1/2: minimax in relative error (0.41 *
// 2^-24).
struct Ones {
  static constexpr double value = 1.0;
};
constexpr double kLn2 = 0.69314718055994530942;
// Of a power of 2 or of 4, y is the exponent.
struct Ln2 {
  static constexpr double value = kLn2;
};
struct Ln4 {
  static constexpr double value = 2 * kLn2;
};
template <class Unit = Ones, class T>
GENKERN_HD T expm1_series(T y) {
  constexpr double k = Unit::value, k2 = k * k, k4 = k2 * k2;
  T p = T(float(0.0001987562864087522 * k4 * k2 * k));
  p = madd(p, y, T(float(0.0013981997035443783 * k4 * k2)));
  p = madd(p, y, T(float(0.008333452045917511 * k4 * k)));
  p = madd(p, y, T(float(0.04166579619050026 * k4)));
  p = madd(p, y, T(float(0.1666666567325592 * k2 * k)));
  return madd(p, y, T(float(0.5 * k2)));
}
// Taylor to x^15 / 15!: the next term is below 2^-53 of the sum.
GENKERN_HD double expm1_series(double x) {
  double p = 1.0 / 1307674368000.0;
  p = madd(p, x, 1.0 / 87178291200.0);
  p = madd(p, x, 1.0 / 6227020800.0);
  p = madd(p, x, 1.0 / 479001600.0);
  p = madd(p, x, 1.0 / 39916800.0);
  p = madd(p, x, 1.0 / 3628800.0);
  p = madd(p, x, 1.0 / 362880.0);
  p = madd(p, x, 1.0 / 40320.0);
  p = madd(p, x, 1.0 / 5040.0);
  p = madd(p, x, 1.0 / 720.0);
  p = madd(p, x, 1.0 / 120.0);
  p = madd(p, x, 1.0 / 24.0);
  p = madd(p, x, 1.0 / 6.0);
  return madd(p, x, 0.5);
}
// Given e = e^x.
template <class T>
GENKERN_HD Expm1<T> expm1(T x, T e) {
  const T series = x * x * expm1_series(x);
  const T far = e - T(1.0f);
  const T size = magnitude(x), half = T(0.5f);
  // e^88 absorbs 88 in either precision: the bound only keeps infinity minus infinity away.
  return {select_less(size, half, x + series, far),
          select_less(size, half, series, far - at_most(x, T(88.0f)))};
}

template <class T>
GENKERN_HD Expm1<T> expm1(T x) {
  return expm1(x, exp(x));
}

// The same with e^(x/2).
template <class T>
struct RootExpm1 {
  T root;
  Expm1<T> expm1;
};
template <class T>
GENKERN_HD RootExpm1<T> root_expm1(T x) {
  const T root = root_exp(x);
  return {root, expm1(x, root * root)};
}
// Where n = 0, x = 2 r: e^x - 1 = 2 q + q^2, and less x that is 2 w r + q^2, a sum of what is not
// negative. So the exponential's polynomial serves for the series, within 2 * 2^-24.
template <class L, class F = typename L::F>
GENKERN_HD RootExpm1<F> root_expm1_single(F x) {
  const auto c = [](float f) { return L::broadcast(f); };
  const ReducedRoot<F> e = reduced_root<L>(x);
  const F size = magnitude(e.n), half = c(0.5f), top = c(-1.0f) - e.x;
  // q there, e^(x/2) elsewhere: a square is added to, either way.
  const F u = (e.q2 + select_less(size, half, c(0.0f), c(2.0f))) * e.power;
  return {e.value,
          {madd(u, u, select_less(size, half, e.q2, c(-1.0f))),
           madd(u, u, select_less(size, half, e.w * e.r2, top))}};
}
#if !defined(__CUDA_ARCH__)
template <>
GENKERN_HD RootExpm1<float> root_expm1(float x) {
  return root_expm1_single<ScalarLanes>(x);
}
template <>
GENKERN_HD Expm1<float> expm1(float x) {
  return root_expm1(x).expm1;
}
#endif

// The exponential that an operator takes, as a type: of x, of a multiple of x, of half of x, of a
// multiple but never infinite, so that 0 times it is 0, of x in units of which 1 is kUnits, and
// less what cancels.
struct FullExp {
  static constexpr float kUnits = 1.0f;
  template <class T>
  static GENKERN_HD T of_units(T x) {
    return exp(x);
  }
  template <class T>
  static GENKERN_HD T of(T x) {
    return exp(x);
  }
  template <class T>
  static GENKERN_HD T of(float factor, T x) {
    return exp(T(factor) * x);
  }
  template <class T>
  static GENKERN_HD T root(T x) {
    return root_exp(x);
  }
  template <class T>
  static GENKERN_HD T saturated(float factor, T x) {
    return exp(at_most(T(factor) * x, T(Limits<T>::kLargestExponent)));
  }
  template <class T>
  static GENKERN_HD T decay_of(T x) {
    return decay(x);
  }
  template <class T>
  static GENKERN_HD Expm1<T> expm1_of(T x) {
    return expm1(x);
  }
};
// 2^x, on a GPU by one instruction: within 2^-22 of it, below 2^-126 0.
GENKERN_HD float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return std::exp2(x);
#endif
}
GENKERN_HD double exp2_fast(double x) { return std::exp2(x); }
// For results that are rounded to 16 bits. On a GPU within (4 + |x|) 2^-23.7 of e^x, by two
// instructions for eight; infinity, 0 and NaN are kept.
struct HalfExp {
  static constexpr float kUnits = 0x1.715476p+0f;
  template <class T>
  static GENKERN_HD T of_units(T x) {
    return exp2_fast(x);
  }
  template <class T>
  static GENKERN_HD T of(T x) {
    return of(1.0f, x);
  }
  template <class T>
  static GENKERN_HD T of(float factor, T x) {
    return exp2_fast(x * T(factor * kLog2E));
  }
  template <class T>
  static GENKERN_HD T root(T x) {
    return of(0.5f, x);
  }
  template <class T>
  static GENKERN_HD T saturated(float factor, T x) {
    return exp2_fast(at_most(x * T(factor * kLog2E), T(127.0f)));
  }
  template <class T>
  static GENKERN_HD T decay_of(T x) {
    return of(-magnitude(x));
  }
  template <class T>
  static GENKERN_HD Expm1<T> expm1_of(T x) {
    return expm1(x, of(x));
  }

 private:
  static constexpr float kLog2E = 0x1.715476p+0f;
};

// e^x - 1 - x of x = 2 ln 2 y, given root = 2^y = e^(x/2): in y no logarithm is multiplied by. With
// HalfExp the series is within 2^-20, closer than what the difference cancels to where it ends.
template <class Exp, class T>
GENKERN_HD T expm1_minus_x(T y, T root) {
  constexpr double k = Ln4::value, k2 = k * k, k4 = k2 * k2;
  T p;
  if constexpr (std::is_same_v<Exp, HalfExp>) {
    p = T(float(0.0013914653100073338 * k4 * k2));
    p = madd(p, y, T(float(0.00839541107416153 * k4 * k)));
    p = madd(p, y, T(float(0.041667476296424866 * k4)));
    p = madd(p, y, T(float(0.16666279733181 * k2 * k)));
    p = madd(p, y, T(float(0.5 * k2)));
  } else {
    p = expm1_series<Ln4>(y);
  }
  return select_less(magnitude(y), T(float(0.5 / k)), y * y * p,
                     madd(root, root, madd(y, T(float(-k)), T(-1.0f))));
}
template <class Exp>
GENKERN_HD double expm1_minus_x(double y, double root) {
  return expm1(2 * kLn2 * y, root * root).minus_x;
}

// e^x - 1 of x = ln 2 z, given e = 2^z = e^x. With HalfExp within 2^-18.
template <class Exp, class T>
GENKERN_HD T expm1_given(T z, T e) {
  constexpr double k = Ln2::value, k2 = k * k;
  T p, end;
  if constexpr (std::is_same_v<Exp, HalfExp>) {
    // x + x^2 / 2 + x^3 / 6, with the multiple of x^2 nearest to x^4 / 24 where |x| < 1/16.
    end = T(float(0.0625 / k));
    p = T(float(k2 * k / 6));
    p = madd(p, z, T(float(k2 * (0.5 + 0.0625 * 0.0625 / 32))));
  } else {
    end = T(float(0.5 / k));
    p = expm1_series<Ln2>(z);
  }
  return select_less(magnitude(z), end, madd(p, z, T(float(k))) * z, e - T(1.0f));
}
template <class Exp>
GENKERN_HD double expm1_given(double z, double e) {
  return expm1(kLn2 * z, e).value;
}

// log(1 + e) for e in [0, 1], within 2 ulp.
template <class T>
GENKERN_HD T log1p_exp(T e) {
  // log(1 + e) = 2 atanh(s) with s = e / (2 + e) <= 1/3; 2 atanh(s) / s in powers of s^2, minimax
  // in relative error (0.07 * 2^-24).
  const T s = ratio(e, T(2.0f) + e);
  const T q = s * s;
  T p = T(0.2817833125591278f);
  p = madd(p, q, T(0.27960604429244995f));
  p = madd(p, q, T(0.40024909377098083f));
  p = madd(p, q, T(0.6666631698608398f));
  p = madd(p, q, T(2.0f));
  return p * s;
}
template <>
GENKERN_HD double log1p_exp(double e) {
  return ::log1p(e);
}

}  // namespace genkern
