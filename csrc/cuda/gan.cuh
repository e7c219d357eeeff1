// What a thread does with a slot in the kernels of the GAN family. One element's mathematics is in
// genkern/gan.h, the operators' in genkern/_ops/gan.py.
#pragma once

#include "cuda/launch.cuh"
#include "genkern/gan.h"

namespace genkern::cuda {

// ---- functions of logits

// factor * form(sign * logit), with the derivative slope * form'(sign * logit).
template <class Acc>
struct TermNumbers {
  Acc sign, factor, slope, smoothing;
  template <class Exp, class Form, class N>
  __device__ OfLogit<N> form(N logit, Form) const {
    return logit_form<Form::value, Exp>(sign * logit, N(smoothing));
  }
};

// A function of x and one of y of the same form, or one of x - y.
template <class Acc>
struct Terms {
  LogitForm form;
  bool difference;
  TermNumbers<Acc> x, y;
};

// Calls f with the form as a constant.
template <class F>
__device__ void with_form(LogitForm form, const F& f) {
  switch (form) {
    case LogitForm::kLogistic:
      return f(std::integral_constant<LogitForm, LogitForm::kLogistic>{});
    case LogitForm::kHinge:
      return f(std::integral_constant<LogitForm, LogitForm::kHinge>{});
    case LogitForm::kLinear:
      return f(std::integral_constant<LogitForm, LogitForm::kLinear>{});
    case LogitForm::kSquare:
      return f(std::integral_constant<LogitForm, LogitForm::kSquare>{});
    case LogitForm::kProbability:
      return f(std::integral_constant<LogitForm, LogitForm::kProbability>{});
  }
}

// The values, and the gradients of their reduction where they are asked for.
template <class Acc>
struct Logits {
  enum { kX, kY, kGradY, kGradX, kValue, kTensors };
  static constexpr bool kSums = true, kDraws = false, kBySample = false;
  Terms<Acc> terms;

  template <class S>
  __device__ Acc operator()(const S& slot) const {
    using N = typename S::Number;
    typename S::Numbers x, y, value;
    slot.load(kX, x);
    slot.load_or(kY, Acc(0), y);
    if (terms.difference) {
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) x[v] -= y[v];
    }
    with_form(terms.form, [&](auto form) {
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        const auto f = terms.x.template form<typename S::Exp>(x[v], form);
        value[v] = terms.x.factor * f.value;
        x[v] = terms.x.slope * f.u;
      }
      if (terms.difference || !slot.has(kY)) return;
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        const auto f = terms.y.template form<typename S::Exp>(y[v], form);
        value[v] = madd(N(terms.y.factor), f.value, value[v]);
        y[v] = terms.y.slope * f.u;
      }
    });
    if (slot.has(kGradX)) slot.store(kGradX, x);
    if (slot.has(kGradY)) {
      if (terms.difference) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) y[v] = -x[v];
      }
      slot.store(kGradY, y);
    }
    if (slot.has(kValue)) slot.store(kValue, value);
    return slot.sum(value);
  }
};

template <class Acc>
struct LogitsBackward {
  enum { kGrad, kX, kY, kGradY, kGradX, kTensors };
  static constexpr bool kSums = false, kDraws = false, kBySample = false;
  Terms<Acc> terms;
  Acc grad_factor;

  template <class S>
  __device__ void operator()(const S& slot) const {
    typename S::Numbers g, x, y;
    slot.load_upstream(kGrad, grad_factor, g);
    slot.load_or(kX, Acc(0), x);
    slot.load_or(kY, Acc(0), y);
    if (terms.difference) {
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) x[v] -= y[v];
    }
    with_form(terms.form, [&](auto form) {
      if (slot.has(kX)) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v)
          x[v] = g[v] * (terms.x.slope * terms.x.template form<typename S::Exp>(x[v], form).u);
      }
      if (terms.difference || !slot.has(kY)) return;
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v)
        y[v] = g[v] * (terms.y.slope * terms.y.template form<typename S::Exp>(y[v], form).u);
    });
    if (slot.has(kGradX)) slot.store(kGradX, x);
    if (slot.has(kGradY)) {
      if (terms.difference) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) y[v] = -x[v];
      }
      slot.store(kGradY, y);
    }
  }
};

template <class T>
constexpr int kBlocks<LogitsBackward<float>, T, Walk::kFlat> = sizeof(T) == 4 ? 6 : 4;

// ---- penalties: the sums of a sample, what follows from them, and a multiple of the sample

struct PenaltySums {
  double squares, products;  // of g, of g v
  __device__ PenaltySums& operator+=(const PenaltySums& other) {
    squares += other.squares;
    products += other.products;
    return *this;
  }
};
__device__ inline PenaltySums shuffle_down(const PenaltySums& x, int step) {
  return {shuffle_down(x.squares, step), shuffle_down(x.products, step)};
}

struct PenaltyTensors {
  enum { kGrads, kGradOut, kTensors };
  PenaltySums* partials;  // [sample][block]
};

template <class Body, class T, Walk kWalk>
__global__ void __launch_bounds__(kThreads, 1)
    sum_squares(const __grid_constant__ Plan<Body::kTensors> plan,
                const __grid_constant__ Body body) {
  using Acc = typename Arithmetic<T>::type;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  PenaltySums total{};
  if (sample < plan.samples)
    for_sample_slots<T, kWalk>(plan, Stream{}, sample, [&](const auto& slot) {
      using S = std::decay_t<decltype(slot)>;
      typename S::Numbers g, v;
      slot.load(Body::kGrads, g);
#pragma unroll
      for (int i = 0; i < S::kLanes; ++i)
        total.squares += static_cast<double>(S::lane(g, i)) * S::lane(g, i);
      if (!slot.has(Body::kGradOut)) return;
      slot.load(Body::kGradOut, v);
#pragma unroll
      for (int i = 0; i < S::kLanes; ++i)
        total.products += static_cast<double>(S::lane(g, i)) * S::lane(v, i);
    });
  total = sum_threads(total, blockDim.x);
  if (threadIdx.x == 0 && sample < plan.samples)
    body.partials[sample * gridDim.y + blockIdx.y] = total;
}

// Of a sample: the result is scale^2 (k v + l g) or, without v, scale^2 k g. The scale is 1 but
// where k or l is beyond float, as of a norm near 1e-39. They are below 2^277 where a result is not
// infinite: for the least of floats, 2^-149, times l is below 2^128.
template <class Acc>
struct PenaltyCoefficients {
  Acc k, l, scale;

  static __device__ PenaltyCoefficients of(double k, double l) {
    if (holds<Acc>(k) && holds<Acc>(l)) return {Acc(k), Acc(l), Acc(1)};
    constexpr int kMost = sizeof(Acc) == sizeof(double) ? 0 : 75;
    const int half = min((ilogb(fmax(fabs(k), fabs(l))) - 125) / 2, kMost);
    return {coefficient<Acc>(ldexp(k, -2 * half)), coefficient<Acc>(ldexp(l, -2 * half)),
            Acc(ldexp(1.0, half))};
  }
};

template <class Acc>
struct PenaltyRows {
  const PenaltySums* partials;  // null: the squares do not matter
  int64_t blocks, samples;
  double center, weight, divisor;
  const void* grad;  // upstream, of the penalty; null: the penalty itself is asked for
  int64_t grad_stride;
  PenaltyCoefficients<Acc>* coefficients;  // of each sample
  void* out;           // the penalty, or the gradient of `grad`; null: not asked for
  bool along, reduce;  // there is a v; one value for all samples
};

// blockDim.x threads a sample. One block where `reduce` is set.
template <class Acc, class Value>
__global__ void __launch_bounds__(kThreads, 1)
    solve_penalty(const __grid_constant__ PenaltyRows<Acc> rows) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  double all = 0;
  for (int64_t row = first; row < rows.samples; row += step) {
    const int64_t sample = row + threadIdx.y;
    PenaltySums sums{};
    if (rows.partials && sample < rows.samples)
      for (int64_t i = threadIdx.x; i < rows.blocks; i += blockDim.x)
        sums += rows.partials[sample * rows.blocks + i];
    sums = sum_threads(sums, blockDim.x);
    if (threadIdx.x || sample >= rows.samples) continue;
    const Penalty p = penalty(sums.squares, rows.center, rows.weight);
    double value = p.value;
    if (rows.grad) {
      const double g =
          widen(static_cast<const Value*>(rows.grad)[sample * rows.grad_stride]) / rows.divisor;
      const double l = rows.along ? g * p.turned(sums.products) : 0;
      if (rows.along) value = p.slope * sums.products;
      rows.coefficients[sample] = PenaltyCoefficients<Acc>::of(g * p.slope, l);
    }
    all += value;
    if (rows.out && !rows.reduce)
      static_cast<Value*>(rows.out)[sample] = narrow<Value>(static_cast<Acc>(value));
  }
  if (!rows.out || !rows.reduce) return;
  all = sum_threads(all, kThreads);
  if (thread_in_block() == 0)
    static_cast<Value*>(rows.out)[0] = narrow<Value>(static_cast<Acc>(all / rows.divisor));
}

template <class Acc>
struct ScaleSamples {
  enum { kGrads, kGradOut, kOut, kTensors };
  static constexpr bool kSums = false, kDraws = false, kBySample = true;
  const PenaltyCoefficients<Acc>* coefficients;

  struct Sample {
    PenaltyCoefficients<Acc> by;

    template <class S>
    __device__ void operator()(const S& slot) const {
      typename S::Numbers g, v;
      if (!slot.has(kGradOut)) {
        slot.load(kGrads, g);
#pragma unroll
        for (int i = 0; i < S::kNumbers; ++i) g[i] *= by.k;
        store(slot, g);
        return;
      }
      slot.load(kGradOut, v);
      slot.load_or(kGrads, Acc(0), g);
#pragma unroll
      for (int i = 0; i < S::kNumbers; ++i) {
        v[i] *= by.k;
        // Where there is no turn, an infinite g must not meet the 0.
        if (by.l != Acc(0)) v[i] = madd(by.l, g[i], v[i]);
      }
      store(slot, v);
    }

   private:
    template <class S>
    __device__ void store(const S& slot, typename S::Numbers& x) const {
      if (by.scale != Acc(1)) {
#pragma unroll
        for (int i = 0; i < S::kNumbers; ++i) x[i] = x[i] * by.scale * by.scale;
      }
      slot.store(kOut, x);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType&, int64_t sample) const {
    return {coefficients[sample]};
  }
};

// ---- points between real and generated data

// A weight a sample: given, or drawn, element b of the key's stream or element 0 of sample b's.
template <class T>
struct Weights {
  using Acc = typename Arithmetic<T>::type;
  const T* given;
  int64_t stride;
  const uint64_t* key;
  int64_t key_stride, word_stride;
  bool own_keys;

  __device__ Acc operator[](int64_t sample) const {
    if (given) return widen(given[sample * stride]);
    const uint64_t* k = key + sample * key_stride;
    return uniform_at<Acc>({k[0], k[word_stride]}, own_keys ? 0 : sample);
  }
};

template <class T>
struct Interpolate {
  using Acc = typename Arithmetic<T>::type;
  enum { kReal, kFake, kMixed, kTensors };
  static constexpr bool kSums = false, kDraws = false, kBySample = true;
  Weights<T> weights;

  struct Sample {
    Acc w;

    template <class S>
    __device__ void operator()(const S& slot) const {
      using N = typename S::Number;
      typename S::Numbers real, fake;
      slot.load(kReal, real);
      slot.load(kFake, fake);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) real[v] = interpolate(real[v], fake[v], N(w));
      slot.store(kMixed, real);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType&, int64_t sample) const {
    return {weights[sample]};
  }
};

template <>
constexpr int kBlocks<Interpolate<float>, float, Walk::kFlat> = kPairInstructions ? 8 : 1;

// Sums to the gradients of the weights.
template <class T>
struct InterpolateBackward {
  using Acc = typename Arithmetic<T>::type;
  enum { kGrad, kReal, kFake, kGradFake, kGradReal, kTensors };
  static constexpr bool kSums = true, kDraws = false, kBySample = true;
  Weights<T> weights;

  struct Sample {
    Acc w;

    template <class S>
    __device__ Acc operator()(const S& slot) const {
      using N = typename S::Number;
      typename S::Numbers g, real, fake;
      slot.load(kGrad, g);
      slot.load_or(kReal, Acc(0), real);
      slot.load_or(kFake, Acc(0), fake);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        const N along = g[v] * (real[v] - fake[v]);
        real[v] = w * g[v];
        fake[v] = (Acc(1) - w) * g[v];
        g[v] = along;
      }
      if (slot.has(kGradReal)) slot.store(kGradReal, real);
      if (slot.has(kGradFake)) slot.store(kGradFake, fake);
      return slot.sum(g);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType&, int64_t sample) const {
    return {weights[sample]};
  }
};

template <class T>
constexpr int kBlocks<InterpolateBackward<T>, T, Walk::kFlat> = kAmpere && sizeof(T) == 2 ? 6 : 1;
template <class T>
constexpr bool kKept<InterpolateBackward<T>, T> = sizeof(T) != 2;

}  // namespace genkern::cuda
