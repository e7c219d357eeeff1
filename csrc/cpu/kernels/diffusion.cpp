// The diffusion family, for one instruction set: GENKERN_CAPABILITY is its namespace.
//
// A kernel is a few loops over a chunk in the first-level cache. Those over elements of one sample
// take that sample's coefficients as numbers.
#include "genkern/diffusion.h"

#include <algorithm>
#include <cmath>

#include "cpu/driver.h"

namespace genkern::GENKERN_CAPABILITY {
namespace {

template <class T>
T coefficient(const Table& table, int64_t sample, int column) {
  return static_cast<const T*>(
      table.data)[table.row(sample) * table.row_stride + column * table.column_stride];
}

template <class T>
T value_of(const SampleValues& values, int64_t sample, double absent) {
  return values.data ? static_cast<const T*>(values.data)[sample * values.stride]
                     : static_cast<T>(absent);
}

// Calls f(sample, position in the chunk, length) for the parts of a unit that share coefficients.
template <class F>
void for_samples(const Call& call, const Cut& cut, const Unit& unit, const F& f) {
  if (!call.by_sample || cut.chunks > 1)
    return f(cut.length ? unit.start / cut.length : 0, 0, unit.n);
  for (int64_t s = 0; s < unit.segments; ++s) {
    f(unit.partial + s, s * cut.length, cut.length);
  }
}

// A term of a sum: a coefficient times numbers, which may be stored in 16 bits.
template <class T, class P>
struct Term {
  const P* in;
  T c;
};
template <class T, class P>
Term(const P*, T) -> Term<T, P>;

// out = the sum of the terms.
template <class T, class O, class P, class... Rest>
void combine(int64_t n, O* out, Term<T, P> first, Term<T, Rest>... rest) {
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    V sum = V(first.c) * load_vector<V>(first.in + i);
    ((sum = madd(V(rest.c), load_vector<V>(rest.in + i), sum)), ...);
    store_vector(out + i, sum);
  });
}

// The sum of `done`, of `count` terms more and of `last`, if it is there.
template <class T, class O, class P, class E, class... Done>
void combine_all(int64_t n, O* out, int count, const Term<T, P>* more, Term<T, E> last,
                 Done... done) {
  if constexpr (sizeof...(Done) < 4) {
    if (count > 0) return combine_all(n, out, count - 1, more + 1, last, done..., *more);
    if (last.in) return combine(n, out, done..., last);
  }
  if constexpr (sizeof...(Done) > 0) combine(n, out, done...);
}

// The noise of a unit, drawn or read; null where there is none. `ahead` are read after it.
template <class S, class T, int N>
const T* noise_of(const Call& call, const Keys& keys, const Tensors<S, N>& a, int noise,
                  std::initializer_list<int> ahead, const Unit& unit, T* buffer) {
  if (!keys.data) return a[noise] ? a[noise].read(unit.start, unit.n, buffer) : nullptr;
  Ahead soon;
  for (int tensor : ahead) {
    if (a[tensor]) a[tensor].soon(unit.start, unit.n, soon);
  }
  fill_noise(keys, call.shape.samples, total(call.shape), 0, unit.start, unit.n, buffer, soon);
  return buffer;
}

int64_t grain(const Keys& keys) { return keys.data ? kNoiseGrain : kGrain; }

// ---- affine

void affine(const Affine& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const Tensors<S, 5> a(
        call, {&call.terms[0], &call.terms[1], &call.terms[2], &call.terms[3], &call.out},
        call.keys.data == nullptr, 4);
    const Cut cut = cut_of(call);
    const bool drawn = call.keys.data != nullptr;
    for_units(call, cut, grain(call.keys), [&](int64_t begin, int64_t end) {
      alignas(64) T in_[3][kChunk], eps_[kChunk], out_[kChunk];
      alignas(64) S rounded[kChunk];
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        // `in(k)` is where term k begins, or null.
        const auto sum = [&](int terms, auto in, const T* eps, auto* out) {
          for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
            const auto c = [&](int k) { return coefficient<T>(call.table, sample, k); };
            decltype(Term{in(0), T()}) there[4];
            int count = 0;
            for (int k = 0; k < terms; ++k) {
              if (in(k)) there[count++] = {in(k) + at, c(k)};
            }
            combine_all(n, out + at, count, there, Term{eps ? eps + at : eps, eps ? c(3) : T(0)});
          });
        };
        const auto noise = [&] {
          return noise_of<S>(call, call.keys, a, 3, {0, 1, 2}, unit, eps_);
        };
        if (in_rows(a, unit, {0, 1, 2, 3, 4})) {
          const auto row = [&](int k) -> const S* {
            return a[k] ? a[k].row(unit.start, unit.n) : nullptr;
          };
          S* out = a[4].row_target(unit.start, unit.n, rounded);
          sum(drawn ? 3 : 4, row, drawn ? noise() : nullptr, out);
          a[4].write_row(unit.start, unit.n, rounded);
          continue;
        }
        const T* eps = noise();
        const T* in[3];
        for (int k = 0; k < 3; ++k) {
          in[k] = a[k] ? a[k].read(unit.start, unit.n, in_[k]) : nullptr;
        }
        put(a[4], unit, out_, [&](auto* out) { sum(3, [&](int k) { return in[k]; }, eps, out); });
      }
    });
  });
}

// ---- noise_loss

enum LossTensor {
  kLossPred,
  kLossX0,
  kLossNoise,
  kLossGrad,
  kLoss,
  kLossGradPred,
  kLossTensors = 8
};

template <class S>
Tensors<S, kLossTensors> loss_tensors(const NoiseLoss& call) {
  return {call,
          {&call.pred, &call.x0, &call.noise, &call.grad, &call.loss, &call.grad_pred,
           &call.grad_x0, &call.grad_noise},
          call.keys.data == nullptr,
          kLoss};
}

enum LossColumn { kTargetX0, kTargetNoise, kWeight, kOffset };

// Calls f(unit, pred, x0, eps) for each unit; what is absent is 0. They may be 16-bit numbers.
template <class S, class F>
void for_loss_units(const NoiseLoss& call, const Tensors<S, kLossTensors>& a, const Cut& cut,
                    const F& f) {
  using T = typename Arithmetic<S>::T;
  for_units(call, cut, grain(call.keys), [&](int64_t begin, int64_t end) {
    alignas(64) T pred_[kChunk], x0_[kChunk], eps_[kChunk], zero[kChunk] = {};
    alignas(64) S none[kChunk] = {};
    for (int64_t index = begin; index < end; ++index) {
      const Unit unit(cut, index);
      const auto noise = [&] {
        return noise_of<S>(call, call.keys, a, kLossNoise, {kLossPred, kLossX0}, unit, eps_);
      };
      if (in_rows(a, unit, {kLossPred, kLossX0, kLossNoise})) {
        const auto row = [&](int k) -> const S* {
          return a[k] ? a[k].row(unit.start, unit.n) : none;
        };
        if (call.keys.data) {
          f(unit, row(kLossPred), row(kLossX0), noise());
        } else {
          f(unit, row(kLossPred), row(kLossX0), row(kLossNoise));
        }
        continue;
      }
      const T* eps = noise();
      const T* x0 = a[kLossX0] ? a[kLossX0].read(unit.start, unit.n, x0_) : zero;
      f(unit, a[kLossPred].read(unit.start, unit.n, pred_), x0, eps ? eps : zero);
    }
  });
}

template <class T>
T loss_weight(const NoiseLoss& call, int64_t sample) {
  return coefficient<T>(call.table, sample, kWeight) * value_of<T>(call.sample_weight, sample, 1.0);
}

// pred - target, for one sample.
template <class T, class P, class E>
struct LossDifference {
  const P *pred, *x0;
  const E* eps;
  T c_x0, c_eps;

  template <class V>
  GENKERN_HD V at(int64_t i) const {
    const V sum = madd(V(c_x0), load_vector<V>(x0 + i), load_vector<V>(pred + i));
    return madd(V(c_eps), load_vector<V>(eps + i), sum);
  }
};
template <class T, class P, class E>
LossDifference<T, P, E> difference_of(const NoiseLoss& call, int64_t sample, const P* pred,
                                      const P* x0, const E* eps) {
  return {pred, x0, eps, -coefficient<T>(call.table, sample, kTargetX0),
          -coefficient<T>(call.table, sample, kTargetNoise)};
}

// With grad_pred, the gradient for an upstream gradient of 1 as well.
void noise_loss(const NoiseLoss& call) {
  if (empty(call, call.loss.data)) return;
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = loss_tensors<S>(call);
    const auto& gradient = a[kLossGradPred];
    const Cut cut = cut_of(call);
    const bool reduce = call.reduction != Reduction::kNone, forming = static_cast<bool>(gradient);
    const T factor = static_cast<T>(2.0 / divisor(call));
    const auto body = [&](const Unit& unit, const auto* pred, const auto* x0, const auto* eps) {
      alignas(64) T out_[kChunk], grad_[kChunk];
      alignas(64) S rounded[kChunk];
      T* out = reduce ? out_ : a[kLoss].target(unit.start, unit.n, out_);
      const auto differences = [&](auto* grad) {
        for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
          const auto difference = difference_of<T>(call, sample, pred + at, x0 + at, eps + at);
          const T weight = loss_weight<T>(call, sample), slope = factor * weight;
          const T offset = coefficient<T>(call.table, sample, kOffset);
          T* const value = out + at;
          auto* const along = grad + at;
          for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
            using V = typename decltype(number)::T;
            const V d = difference.template at<V>(i);
            store_vector(value + i, weighted_square(d, V(weight), V(offset)));
            if (forming) store_vector(along + i, V(slope) * d);
          });
        });
      };
      if (forming && in_rows(a, unit, {kLossGradPred})) {
        differences(gradient.row_target(unit.start, unit.n, rounded));
        gradient.write_row(unit.start, unit.n, rounded);
      } else if (forming) {
        put(gradient, unit, grad_, differences);
      } else {
        differences(grad_);
      }
      if (reduce) {
        partial_sums(cut, unit, out, call.partials);
      } else {
        a[kLoss].write(unit.start, unit.n, out, out_);
      }
    };
    for_loss_units<S>(call, a, cut, body);
    if (reduce) finish(call, cut, static_cast<T*>(call.loss.data));
  });
}

void noise_loss_backward(const NoiseLoss& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = loss_tensors<S>(call);
    const Cut cut = cut_of(call);
    const T factor = static_cast<T>(2.0 / divisor(call));
    const auto body = [&](const Unit& unit, const auto* pred, const auto* x0, const auto* eps) {
      alignas(64) T grad_[kChunk], out_[3][kChunk];
      const T* grad = a[kLossGrad].read(unit.start, unit.n, grad_);
      T* out[3];
      for (int v = 0; v < 3; ++v) {
        const auto& access = a[kLossGradPred + v];
        out[v] = access ? access.target(unit.start, unit.n, out_[v]) : out_[v];
      }
      for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
        const auto difference = difference_of<T>(call, sample, pred + at, x0 + at, eps + at);
        const T weight = factor * loss_weight<T>(call, sample);
        const T* const g = grad + at;
        T* const to = out[0] + at;
        for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
          using V = typename decltype(number)::T;
          const V d = difference.template at<V>(i);
          store_vector(to + i, V(weight) * load_vector<V>(g + i) * d);
        });
        for (int v = 1; v < 3; ++v) {
          if (!a[kLossGradPred + v]) continue;
          const int column = v == 1 ? kTargetX0 : kTargetNoise;
          combine(n, out[v] + at, Term{to, -coefficient<T>(call.table, sample, column)});
        }
      });
      for (int v = 0; v < 3; ++v) {
        const auto& access = a[kLossGradPred + v];
        if (access) access.write(unit.start, unit.n, out[v], out_[v]);
      }
    };
    for_loss_units<S>(call, a, cut, body);
  });
}

// ---- sampler_step

enum StepTensor {
  kXt,
  kStepPred,
  kVarValues,
  kUncond,
  kStepNoise,
  kStepGrad,
  kNext,
  kX0,
  kStepGradXt,  // and the other four, in the order of their tensors
  kStepTensors = kStepGradXt + 5
};

enum StepColumn {
  kX0Xt,
  kX0Pred,
  kMeanX0,
  kMeanXt,
  kMeanPred,
  kStd,
  kLogVariance,
  kLogVarianceValues
};

template <class S>
Tensors<S, kStepTensors> step_tensors(const SamplerStep& call) {
  return {call,
          {&call.x_t, &call.pred, &call.var_values, &call.uncond, &call.noise, &call.grad,
           &call.out, &call.x0, &call.grad_x_t, &call.grad_pred, &call.grad_var_values,
           &call.grad_uncond, &call.grad_noise},
          call.keys.data == nullptr,
          kNext};
}

// m = factor (uncond + scale (pred - uncond)), or factor pred.
template <class T>
void guided(int64_t n, const T* pred, const T* uncond, T scale, T factor, T* out) {
  if (!uncond) return combine(n, out, Term{pred, factor});
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const V m = guide(load_vector<V>(pred + i), load_vector<V>(uncond + i), V(scale));
    store_vector(out + i, V(factor) * m);
  });
}

// The prediction of a unit, guided or multiplied where it is asked for.
template <class S, class T, int N, class C>
const T* prediction(const C& call, const Tensors<S, N>& a, int pred, int uncond, const Cut& cut,
                    const Unit& unit, T* pred_, T* uncond_, T* guided_) {
  const T* m = a[pred].read(unit.start, unit.n, pred_);
  if (!a[uncond] && !call.guidance_factor.data) return m;
  const T* base = a[uncond] ? a[uncond].read(unit.start, unit.n, uncond_) : nullptr;
  for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
    guided(n, m + at, base ? base + at : nullptr, static_cast<T>(call.guidance_scale),
           value_of<T>(call.guidance_factor, sample, 1.0), guided_ + at);
  });
  return guided_;
}

// eps multiplied by the part of the standard deviation that the network learns.
template <class T>
void scale_noise(int64_t n, const T* eps, const T* var_values, T log_variance, T of_values,
                 T* out) {
  const T base = T(0.5) * log_variance, slope = T(0.5) * of_values;
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const V std = exp(madd(V(slope), load_vector<V>(var_values + i), V(base)));
    store_vector(out + i, std * load_vector<V>(eps + i));
  });
}

// x0 = clamp(x + m), of terms of x_t and of the prediction, held to [low, high].
template <class T, class P, class M>
struct ClippedX0 {
  Term<T, P> x;
  Term<T, M> m;
  T low, high;
  template <class V>
  GENKERN_HD V unclipped(int64_t i) const {
    return madd(V(m.c), load_vector<V>(m.in + i), V(x.c) * load_vector<V>(x.in + i));
  }
};

// out = of_x0 x0 + the sum of the terms. `finish(i, x0)` is what x0 becomes first.
template <class T, class O, class P, class M, class F, class... Rest>
void combine_x0(int64_t n, O* out, ClippedX0<T, P, M> clipped, F finish, T of_x0,
                Term<T, Rest>... rest) {
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const V x0 = clamp(clipped.template unclipped<V>(i), V(clipped.low), V(clipped.high));
    V sum = V(of_x0) * finish(i, x0);
    ((sum = madd(V(rest.c), load_vector<V>(rest.in + i), sum)), ...);
    store_vector(out + i, sum);
  });
}

bool clips(double low, double high) { return low != -INFINITY || high != INFINITY; }

// One sample's step to `out`, and x0 if there is an array for it. x, m, eps and out may be 16-bit
// numbers; eps is null where no noise is added.
template <class T, class P, class M, class E, class O>
void sampler_step_of(const SamplerStep& call, int64_t sample, int64_t n, const P* x, const M* m,
                     const E* eps, T std, T* x0, O* out) {
  const auto c = [&](int column) { return coefficient<T>(call.table, sample, column); };
  const Term to_x{x, c(kMeanXt)};
  const Term to_m{m, c(kMeanPred)};
  const Term noise{eps, std};
  // A coefficient of 0 adds nothing, whatever its tensor holds: a clipped x0 of an infinite
  // prediction is a bound.
  const auto with_terms = [&](const auto& sum) {
    if (to_m.c == T(0)) return eps ? sum(to_x, noise) : sum(to_x);
    return eps ? sum(to_x, to_m, noise) : sum(to_x, to_m);
  };
  T low = static_cast<T>(call.x0_min), high = static_cast<T>(call.x0_max);
  const bool threshold = call.threshold.data != nullptr;
  if (threshold) {
    high = value_of<T>(call.threshold, sample, 1.0);
    low = -high;
  }
  if (!x0 && !threshold && !clips(low, high)) {
    return with_terms([&](auto... terms) { combine(n, out, terms...); });
  }
  const ClippedX0<T, P, M> clipped = {{x, c(kX0Xt)}, {m, c(kX0Pred)}, low, high};
  const auto by_x0 = [&](auto finish) {
    with_terms([&](auto... terms) { combine_x0(n, out, clipped, finish, c(kMeanX0), terms...); });
  };
  if (!x0 && !threshold) return by_x0([](int64_t, auto v) { return v; });
  // Divided by the threshold after clipping to it.
  const T unit = threshold ? high : T(1);
  by_x0([=](int64_t i, auto v) __attribute__((always_inline)) {
    v = v / decltype(v)(unit);
    if (x0) store_vector(x0 + i, v);
    return v;
  });
}

void sampler_step(const SamplerStep& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = step_tensors<S>(call);
    const Cut cut = cut_of(call);
    const bool drawn = call.keys.data != nullptr;
    const bool plain = !a[kVarValues] && !a[kUncond] && !call.guidance_factor.data;
    for_units(call, cut, grain(call.keys), [&](int64_t begin, int64_t end) {
      alignas(64) T x_[kChunk], pred_[kChunk], values_[kChunk], uncond_[kChunk], eps_[kChunk];
      alignas(64) T guided_[kChunk], x0_[kChunk], scaled[kChunk], out_[kChunk];
      alignas(64) S rounded[kChunk];
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        const auto noise = [&] {
          return noise_of<S>(call, call.keys, a, kStepNoise, {kXt, kStepPred, kVarValues, kUncond},
                             unit, eps_);
        };
        T* x0 = a[kX0] ? a[kX0].target(unit.start, unit.n, x0_) : nullptr;
        const auto step = [&](const auto* x, const auto* m, const auto* eps, auto* out) {
          for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
            // A coefficient of 0 adds no noise, whatever it and its deviation are.
            const T std = eps ? coefficient<T>(call.table, sample, kStd) : T(0);
            sampler_step_of(call, sample, n, x + at, m + at, std == T(0) ? nullptr : eps + at, std,
                            x0 ? x0 + at : nullptr, out + at);
          });
        };
        if (plain && in_rows(a, unit, {kXt, kStepPred, kStepNoise, kNext})) {
          const S *x = a[kXt].row(unit.start, unit.n), *m = a[kStepPred].row(unit.start, unit.n);
          S* out = a[kNext].row_target(unit.start, unit.n, rounded);
          if (drawn) {
            step(x, m, noise(), out);
          } else {
            const S* eps = a[kStepNoise] ? a[kStepNoise].row(unit.start, unit.n) : nullptr;
            step(x, m, eps, out);
          }
          a[kNext].write_row(unit.start, unit.n, rounded);
        } else {
          const T* eps = noise();
          const T* x = a[kXt].read(unit.start, unit.n, x_);
          const T* m =
              prediction<S>(call, a, kStepPred, kUncond, cut, unit, pred_, uncond_, guided_);
          if (a[kVarValues] && eps) {
            const T* values = a[kVarValues].read(unit.start, unit.n, values_);
            for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
              const auto c = [&](int column) { return coefficient<T>(call.table, sample, column); };
              if (c(kStd) == T(0)) return;
              scale_noise(n, eps + at, values + at, c(kLogVariance), c(kLogVarianceValues),
                          scaled + at);
            });
            eps = scaled;
          }
          put(a[kNext], unit, out_, [&](auto* out) { step(x, m, eps, out); });
        }
        if (a[kX0]) a[kX0].write(unit.start, unit.n, x0, x0_);
      }
    });
  });
}

// A gradient by way of the mean: of_grad g + of_x0 (what passes the clip).
template <class T>
struct Way {
  T* out;
  T of_grad, of_x0;
};

// x0 not clipped passes mean_x0 g.
template <class T, class... Ways>
void pass_clip(int64_t n, ClippedX0<T, T, T> clipped, const T* g, T mean_x0, Ways... ways) {
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const V x0 = clipped.template unclipped<V>(i), grad = load_vector<V>(g + i);
    const V zero = V(0.0f), upstream = V(mean_x0) * grad;
    const V passed =
        select_less(x0, V(clipped.low), zero, select_less(V(clipped.high), x0, zero, upstream));
    (store_vector(ways.out + i, madd(V(ways.of_x0), passed, V(ways.of_grad) * grad)), ...);
  });
}

void sampler_step_backward(const SamplerStep& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = step_tensors<S>(call);
    const Cut cut = cut_of(call);
    const bool clip = clips(call.x0_min, call.x0_max);
    const bool learned = call.var_values.data != nullptr;
    const bool noisy = call.keys.data || call.noise.data;
    const T scale = a[kUncond] ? static_cast<T>(call.guidance_scale) : T(1);
    const bool wants[5] = {call.grad_x_t.data != nullptr, call.grad_pred.data != nullptr,
                           call.grad_var_values.data != nullptr, call.grad_uncond.data != nullptr,
                           call.grad_noise.data != nullptr};
    for_units(call, cut, grain(call.keys), [&](int64_t begin, int64_t end) {
      alignas(64) T x_[kChunk], pred_[kChunk], values_[kChunk], uncond_[kChunk], eps_[kChunk];
      alignas(64) T guided_[kChunk], grad_[kChunk], std_[kChunk];
      alignas(64) T out_[5][kChunk];
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        // The noise only matters for the gradient of what it is multiplied by.
        const T* eps = wants[2] ? noise_of<S>(call, call.keys, a, kStepNoise,
                                              {kStepGrad, kVarValues}, unit, eps_)
                                : nullptr;
        const T* g = a[kStepGrad].read(unit.start, unit.n, grad_);
        const T *x = nullptr, *m = nullptr, *values = nullptr;
        if (clip) {
          x = a[kXt].read(unit.start, unit.n, x_);
          m = prediction<S>(call, a, kStepPred, kUncond, cut, unit, pred_, uncond_, guided_);
        }
        if (learned && (wants[2] || wants[4])) {
          values = a[kVarValues].read(unit.start, unit.n, values_);
        }
        T* out[5];
        for (int v = 0; v < 5; ++v) {
          const auto& access = a[kStepGradXt + v];
          out[v] = access ? access.target(unit.start, unit.n, out_[v]) : out_[v];
        }
        for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
          const auto c = [&](int column) { return coefficient<T>(call.table, sample, column); };
          const T* const from = g + at;
          Way<T> ways[3];
          int count = 0;
          const auto way = [&](int v, T factor, int of_grad, int of_x0) {
            if (wants[v]) ways[count++] = {out[v] + at, factor * c(of_grad), factor * c(of_x0)};
          };
          way(0, T(1), kMeanXt, kX0Xt);
          way(1, scale, kMeanPred, kX0Pred);
          way(3, T(1) - scale, kMeanPred, kX0Pred);
          if (clip) {
            const ClippedX0<T, T, T> clipped = {{x + at, c(kX0Xt)},
                                                {m + at, c(kX0Pred)},
                                                static_cast<T>(call.x0_min),
                                                static_cast<T>(call.x0_max)};
            const auto pass = [&](auto... to) { pass_clip(n, clipped, from, c(kMeanX0), to...); };
            if (count == 3) pass(ways[0], ways[1], ways[2]);
            if (count == 2) pass(ways[0], ways[1]);
            if (count == 1) pass(ways[0]);
          } else {
            for (int w = 0; w < count; ++w) combine(n, ways[w].out, Term{from, ways[w].of_grad});
          }
          if (!wants[2] && !wants[4]) return;
          const T std = noisy ? c(kStd) : T(0);
          if (std == T(0)) {
            for (int64_t i = at; i < at + n; ++i) out[2][i] = out[4][i] = T(0);
            return;
          }
          const T* along_std = from;
          if (values) {
            scale_noise(n, from, values + at, c(kLogVariance), c(kLogVarianceValues), std_ + at);
            along_std = std_ + at;
          }
          if (wants[4]) combine(n, out[4] + at, Term{along_std, std});
          if (wants[2]) {
            const T factor = T(0.5) * std * c(kLogVarianceValues);
            const T* const e = eps + at;
            T* const to = out[2] + at;
            for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
              using V = typename decltype(number)::T;
              store_vector(to + i,
                           V(factor) * load_vector<V>(along_std + i) * load_vector<V>(e + i));
            });
          }
        });
        for (int v = 0; v < 5; ++v) {
          const auto& access = a[kStepGradXt + v];
          if (access) access.write(unit.start, unit.n, out[v], out_[v]);
        }
      }
    });
  });
}

// ---- what a step needs to know of a whole sample

enum StatisticTensor { kStatXt, kStatPred, kStatUncond, kStatTensors };

template <class S>
Tensors<S, kStatTensors> statistic_tensors(const SampleStatistic& call) {
  return {call, {&call.x_t, &call.pred, &call.uncond}, true, kStatTensors};
}

// Mean and sum of squared deviations of n values; merged as in Chan, Golub and LeVeque, "Updating
// formulae and a pairwise algorithm for computing sample variances", 1979, (1.5).
struct Moments {
  double n, mean, squares;
};

template <class T>
Moments moments(const T* x, int64_t n, T* buffer) {
  const double count = static_cast<double>(n);
  const T mean = static_cast<T>(static_cast<double>(sum(x, n)) / count);
  for (int64_t i = 0; i < n; ++i) buffer[i] = x[i] - mean;
  // The mean is rounded: its error shows in the sum of the deviations.
  const double error = static_cast<double>(sum(buffer, n)) / count;
  for (int64_t i = 0; i < n; ++i) buffer[i] *= buffer[i];
  const double squares = static_cast<double>(sum(buffer, n));
  return {count, static_cast<double>(mean) + error, squares - count * error * error};
}

Moments merge(Moments a, Moments b) {
  const double n = a.n + b.n, delta = b.mean - a.mean;
  return {n, a.mean + delta * b.n / n, a.squares + b.squares + delta * delta * a.n * b.n / n};
}

// Calls f(sample, chunks of the sample): samples are shared out among the threads.
template <class F>
void for_whole_samples(const SampleStatistic& call, const F& f) {
  const int64_t samples = call.shape.samples, length = samples ? total(call.shape) / samples : 0;
  parallel(call.parallel, samples, kGrain / (length + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin; sample < end; ++sample) f(sample, length);
  });
}

void guidance_factor(const SampleStatistic& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = statistic_tensors<S>(call);
    for_whole_samples(call, [&](int64_t sample, int64_t length) {
      alignas(64) T pred_[kChunk], uncond_[kChunk], guided_[kChunk], buffer[kChunk];
      Moments plain = {0.0, 0.0, 0.0}, mixed = plain;
      for (int64_t done = 0; done < length; done += kChunk) {
        const int64_t start = sample * length + done;
        const int64_t n = length - done < kChunk ? length - done : kChunk;
        const T* pred = a[kStatPred].read(start, n, pred_);
        guided(n, pred, a[kStatUncond].read(start, n, uncond_), static_cast<T>(call.guidance_scale),
               T(1), guided_);
        plain = merge(plain, moments(pred, n, buffer));
        mixed = merge(mixed, moments(static_cast<const T*>(guided_), n, buffer));
      }
      const double unbiased = static_cast<double>(length - 1);
      const double ratio =
          std::sqrt(plain.squares / unbiased) / std::sqrt(mixed.squares / unbiased);
      static_cast<T*>(call.out)[sample] =
          static_cast<T>(call.guidance_rescale * ratio + (1.0 - call.guidance_rescale));
    });
  });
}

// The bits of numbers >= 0 are ordered as they are.
template <class T>
struct Ordered;
template <>
struct Ordered<float> {
  using Bits = uint32_t;
};
template <>
struct Ordered<double> {
  using Bits = uint64_t;
};

constexpr int kDigit = 11;  // bits of a digit: its counts fit the first-level cache

void dynamic_threshold(const SampleStatistic& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    using Bits = typename Ordered<T>::Bits;
    const auto a = statistic_tensors<S>(call);
    for_whole_samples(call, [&](int64_t sample, int64_t length) {
      alignas(64) T x_[kChunk], pred_[kChunk], uncond_[kChunk], guided_[kChunk], x0_[kChunk];
      // Calls f(bits of |x0|) for each element: they are computed again for each pass, not kept.
      const auto for_magnitudes = [&](const auto& f) {
        const T p = coefficient<T>(call.table, sample, kX0Xt);
        const T q = coefficient<T>(call.table, sample, kX0Pred);
        const T factor = value_of<T>(call.guidance_factor, sample, 1.0);
        for (int64_t done = 0; done < length; done += kChunk) {
          const int64_t start = sample * length + done;
          const int64_t n = length - done < kChunk ? length - done : kChunk;
          const T* x = a[kStatXt].read(start, n, x_);
          const T* m = a[kStatPred].read(start, n, pred_);
          if (a[kStatUncond] || call.guidance_factor.data) {
            guided(n, m, a[kStatUncond] ? a[kStatUncond].read(start, n, uncond_) : nullptr,
                   static_cast<T>(call.guidance_scale), factor, guided_);
            m = guided_;
          }
          combine(n, x0_, Term{x, p}, Term{m, q});
          for (int64_t i = 0; i < n; ++i) {
            Bits bits;
            const T value = std::fabs(x0_[i]);
            std::memcpy(&bits, &value, sizeof bits);
            f(bits);
          }
        }
      };
      const double rank = call.ratio * static_cast<double>(length - 1);
      const int64_t low = static_cast<int64_t>(rank);
      // Digit by digit from the top: how many numbers with the digits found so far have which next.
      Bits found = 0;
      int64_t left = low;
      int64_t equal = 0;
      for (int shift = static_cast<int>(8 * sizeof(Bits)) - 1; shift > 0;) {
        const int width = shift < kDigit ? shift : kDigit;
        const int above = shift;
        shift -= width;
        int64_t counts[1 << kDigit] = {};
        for_magnitudes([&](Bits bits) {
          if ((bits >> (above - 1) >> 1) == (found >> (above - 1) >> 1)) {
            ++counts[bits >> shift & ((Bits{1} << width) - 1)];
          }
        });
        Bits digit = 0;
        while (left >= counts[digit]) left -= counts[digit++];
        found |= digit << shift;
        equal = counts[digit];
      }
      Bits next = found;
      if (low + 1 < length && left + 1 >= equal) {
        next = ~Bits{0};
        for_magnitudes([&](Bits bits) {
          if (bits > found && bits < next) next = bits;
        });
      }
      T at_low, at_high;
      std::memcpy(&at_low, &found, sizeof found);
      std::memcpy(&at_high, &next, sizeof next);
      const double quantile = static_cast<double>(at_low) +
                              (rank - static_cast<double>(low)) *
                                  (static_cast<double>(at_high) - static_cast<double>(at_low));
      // As torch.clamp(min=1, max=max_value): the upper bound wins.
      const double floor = quantile < 1.0 ? 1.0 : quantile;
      static_cast<T*>(call.out)[sample] =
          static_cast<T>(floor > call.max_value ? call.max_value : floor);
    });
  });
}

// ---- vlb

enum VlbTensor {
  kVlbPred,
  kVlbValues,
  kVlbX0,
  kVlbNoise,
  kVlbGrad,
  kVlbLoss,
  kVlbGradPred,
  kVlbGradValues,
  kVlbTensors
};

enum VlbColumn {
  kDiffX0,
  kDiffNoise,
  kDiffPred,
  kVlbMeanX0,
  kTrueLogVariance,
  kVlbLogVariance,
  kVlbLogVarianceValues,
  kDecoder
};

template <class S>
Tensors<S, kVlbTensors> vlb_tensors(const Vlb& call) {
  return {call,
          {&call.pred, &call.var_values, &call.x0, &call.noise, &call.grad, &call.loss,
           &call.grad_pred, &call.grad_var_values},
          call.keys.data == nullptr,
          kVlbLoss};
}

// What one chunk of a sample is about.
template <class T>
struct VlbInputs {
  const T *pred, *values, *x0, *eps;
};

// d = x0 - x0_hat, clipped where asked for; `inside` gets 1 where the clip lets a gradient pass.
template <class T>
void difference(const Vlb& call, int64_t sample, int64_t n, const VlbInputs<T>& in, T* d,
                T* inside) {
  const auto c = [&](int column) { return coefficient<T>(call.table, sample, column); };
  combine(n, d, Term{in.x0, c(kDiffX0)}, Term{in.eps, c(kDiffNoise)}, Term{in.pred, c(kDiffPred)});
  if (!clips(call.x0_min, call.x0_max)) return;
  const T low = static_cast<T>(call.x0_min), high = static_cast<T>(call.x0_max);
  const T* const x0 = in.x0;
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const V x = load_vector<V>(x0 + i), hat = x - load_vector<V>(d + i);
    const V zero = V(0.0f), one = V(1.0f);
    store_vector(inside + i, select_less(hat, V(low), zero, select_less(V(high), hat, zero, one)));
    store_vector(d + i, x - clamp(hat, V(low), V(high)));
  });
}

template <class T>
struct VlbRow {
  VlbRow(const Table& table, int64_t sample, bool learned)
      : mean_x0(coefficient<T>(table, sample, kVlbMeanX0)),
        true_lv(coefficient<T>(table, sample, kTrueLogVariance)),
        lv(coefficient<T>(table, sample, kVlbLogVariance)),
        lv_values(learned ? coefficient<T>(table, sample, kVlbLogVarianceValues) : T(0)),
        diff_pred(coefficient<T>(table, sample, kDiffPred)),
        decoder(coefficient<T>(table, sample, kDecoder) > T(0.5)) {}
  T mean_x0, true_lv, lv, lv_values, diff_pred;
  bool decoder;
};

template <class T>
void vlb_values(const Vlb& call, const VlbRow<T>& row, int64_t n, const VlbInputs<T>& in,
                const T* d, T* out) {
  const T scale = static_cast<T>(call.vlb_scale);
  const T of_values = row.lv_values;
  const T* const values = in.values;
  if (row.decoder) {
    for (int64_t i = 0; i < n; ++i) {
      const double lv = static_cast<double>(madd(of_values, values[i], row.lv));
      const double value =
          decoder_nll(static_cast<double>(d[i]), static_cast<double>(in.x0[i]), lv).value;
      out[i] = static_cast<T>(call.vlb_scale * value);
    }
  } else {
    for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
      using V = typename decltype(number)::T;
      const V lv = madd(V(of_values), load_vector<V>(values + i), V(row.lv));
      const StepKl<V> kl = step_kl(load_vector<V>(d + i), V(row.mean_x0), V(row.true_lv), lv);
      store_vector(out + i, V(scale) * kl.value);
    });
  }
  if (call.simple_scale == 0.0) return;
  const T simple = static_cast<T>(call.simple_scale);
  const T *const pred = in.pred, *const eps = in.eps;
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const V error = load_vector<V>(pred + i) - load_vector<V>(eps + i);
    store_vector(out + i, weighted_square(error, V(simple), load_vector<V>(out + i)));
  });
}

// Gradients of pred and of var_values, times the upstream gradient g.
template <class T>
void vlb_gradients(const Vlb& call, const VlbRow<T>& row, T factor, int64_t n,
                   const VlbInputs<T>& in, const T* d, const T* inside, const T* g, T* grad_pred,
                   T* grad_values) {
  const T scale = factor * static_cast<T>(call.vlb_scale);
  const T of_values = row.lv_values;
  const T* const values = in.values;
  const T of_pred = row.diff_pred;
  if (row.decoder) {
    for (int64_t i = 0; i < n; ++i) {
      const double lv = static_cast<double>(madd(of_values, values[i], row.lv));
      const DecoderNll nll =
          decoder_nll(static_cast<double>(d[i]), static_cast<double>(in.x0[i]), lv);
      const T along = scale * g[i];
      grad_pred[i] = along * static_cast<T>(nll.d) * of_pred;
      grad_values[i] = along * static_cast<T>(nll.lv) * of_values;
    }
  } else {
    for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
      using V = typename decltype(number)::T;
      const V lv = madd(V(of_values), load_vector<V>(values + i), V(row.lv));
      const StepKl<V> kl = step_kl(load_vector<V>(d + i), V(row.mean_x0), V(row.true_lv), lv);
      const V along = V(scale) * load_vector<V>(g + i);
      store_vector(grad_pred + i, along * kl.d * V(of_pred));
      store_vector(grad_values + i, along * kl.lv * V(of_values));
    });
  }
  // Not times 0, which an infinite derivative would make a NaN.
  if (call.detach_mean) {
    std::fill_n(grad_pred, n, T(0));
  } else if (clips(call.x0_min, call.x0_max)) {
    for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
      using V = typename decltype(number)::T;
      const V zero = V(0.0f), g = load_vector<V>(grad_pred + i);
      store_vector(grad_pred + i, select_less(zero, load_vector<V>(inside + i), g, zero));
    });
  }
  if (call.simple_scale == 0.0) return;
  const T simple = T(2) * factor * static_cast<T>(call.simple_scale);
  const T *const pred = in.pred, *const eps = in.eps;
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const V error = load_vector<V>(pred + i) - load_vector<V>(eps + i);
    const V along = V(simple) * load_vector<V>(g + i);
    store_vector(grad_pred + i, madd(along, error, load_vector<V>(grad_pred + i)));
  });
}

// Calls f(unit, inputs of the unit, a function from a position in it to the inputs there).
template <class S, class F>
void for_vlb_units(const Vlb& call, const Tensors<S, kVlbTensors>& a, const Cut& cut, const F& f) {
  using T = typename Arithmetic<S>::T;
  for_units(call, cut, grain(call.keys), [&](int64_t begin, int64_t end) {
    alignas(64) T pred_[kChunk], values_[kChunk], x0_[kChunk], eps_[kChunk];
    if (!a[kVlbValues]) std::fill_n(values_, kChunk, T(0));
    for (int64_t index = begin; index < end; ++index) {
      const Unit unit(cut, index);
      const T* eps =
          noise_of<S>(call, call.keys, a, kVlbNoise, {kVlbPred, kVlbValues, kVlbX0}, unit, eps_);
      const T* pred = a[kVlbPred].read(unit.start, unit.n, pred_);
      const T* values = a[kVlbValues] ? a[kVlbValues].read(unit.start, unit.n, values_) : values_;
      const T* x0 = a[kVlbX0].read(unit.start, unit.n, x0_);
      f(unit, [=](int64_t at) { return VlbInputs<T>{pred + at, values + at, x0 + at, eps + at}; });
    }
  });
}

void vlb(const Vlb& call) {
  if (empty(call, call.loss.data)) return;
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = vlb_tensors<S>(call);
    const Cut cut = cut_of(call);
    const bool reduce = call.reduction != Reduction::kNone;
    for_vlb_units<S>(call, a, cut, [&](const Unit& unit, const auto& inputs) {
      alignas(64) T d[kChunk], inside[kChunk], out_[kChunk];
      T* out = reduce ? out_ : a[kVlbLoss].target(unit.start, unit.n, out_);
      for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
        const VlbRow<T> row(call.table, sample, call.var_values.data != nullptr);
        const VlbInputs<T> in = inputs(at);
        difference(call, sample, n, in, d + at, inside + at);
        vlb_values(call, row, n, in, d + at, out + at);
      });
      if (reduce) {
        partial_sums(cut, unit, out, call.partials);
      } else {
        a[kVlbLoss].write(unit.start, unit.n, out, out_);
      }
    });
    if (reduce) finish(call, cut, static_cast<T*>(call.loss.data));
  });
}

void vlb_backward(const Vlb& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = vlb_tensors<S>(call);
    const Cut cut = cut_of(call);
    const T factor = static_cast<T>(1.0 / divisor(call));
    for_vlb_units<S>(call, a, cut, [&](const Unit& unit, const auto& inputs) {
      alignas(64) T d[kChunk], inside[kChunk], grad_[kChunk], out_[2][kChunk];
      const T* g = a[kVlbGrad].read(unit.start, unit.n, grad_);
      T* out[2];
      for (int v = 0; v < 2; ++v) {
        const auto& access = a[kVlbGradPred + v];
        out[v] = access ? access.target(unit.start, unit.n, out_[v]) : out_[v];
      }
      for_samples(call, cut, unit, [&](int64_t sample, int64_t at, int64_t n) {
        const VlbRow<T> row(call.table, sample, call.var_values.data != nullptr);
        const VlbInputs<T> in = inputs(at);
        difference(call, sample, n, in, d + at, inside + at);
        vlb_gradients<T>(call, row, factor, n, in, d + at, inside + at, g + at, out[0] + at,
                         out[1] + at);
      });
      for (int v = 0; v < 2; ++v) {
        const auto& access = a[kVlbGradPred + v];
        if (access) access.write(unit.start, unit.n, out[v], out_[v]);
      }
    });
  });
}

}  // namespace

const DiffusionKernels& diffusion_kernels() {
  static const DiffusionKernels table = {affine,
                                         noise_loss,
                                         noise_loss_backward,
                                         sampler_step,
                                         sampler_step_backward,
                                         guidance_factor,
                                         dynamic_threshold,
                                         vlb,
                                         vlb_backward};
  return table;
}

}  // namespace genkern::GENKERN_CAPABILITY
