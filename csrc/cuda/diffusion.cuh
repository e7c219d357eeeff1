// What a thread does with a slot in the kernels of the diffusion family. One element's mathematics
// is in genkern/diffusion.h, the operators' in genkern/_ops/diffusion.py.
//
// A tensor that is not there counts as zeros, its coefficient as 0: neither is read.
#pragma once

#include <torch/headeronly/macros/Macros.h>

#include <limits>

#include "cuda/launch.cuh"
#include "genkern/diffusion.h"

namespace genkern::cuda {

// The table of coefficients, whose columns are neighbours, and which of its rows a sample reads:
// its t's, or its own.
template <class Acc>
struct Table {
  const Acc* data;
  const int64_t* t;  // null: none
  int64_t rows, row_stride, t_stride;

  struct Row {
    const Acc* data;
    __device__ Acc operator[](int column) const { return data[column]; }
    __device__ Acc get(int column, bool there) const { return there ? data[column] : Acc(0); }
  };
  __device__ Row row(int64_t sample) const {
    int64_t row = sample;
    if (t) {
      const int64_t step = t[sample * t_stride];
      CUDA_KERNEL_ASSERT(step >= 0 && step < rows && "t must be a row of the table");
      row = step < 0 ? 0 : step < rows ? step : rows - 1;
    }
    return {data + row * row_stride};
  }
};

// A number a sample, or the same for all.
template <class Acc>
struct SampleValues {
  const Acc* data;  // null: `fallback`
  int64_t stride;
  Acc fallback;
  __device__ Acc operator[](int64_t sample) const {
    return data ? data[sample * stride] : fallback;
  }
};

// 0 where x is above `high`, else 1.
template <class T>
__device__ T not_above(T x, T high) {
  return x > high ? 0 : 1;
}
#if defined(__CUDA_ARCH__)
// One instruction for two.
__device__ inline float not_above(float x, float high) {
  asm volatile("set.leu.f32.f32 %0, %0, %1;" : "+f"(x) : "f"(high));
  return x;
}
#endif
__device__ inline Pair not_above(Pair x, Pair high) {
  return {not_above(x.x, high.x), not_above(x.y, high.y)};
}

template <class Acc>
struct Clip {
  Acc low, high;
  template <class N>
  __device__ N operator()(N x) const {
    return clamp(x, N(low), N(high));
  }
  // Its derivative: 1 inside and at the bounds, else 0; NaN counts as inside.
  template <class N>
  __device__ N gradient(N x) const {
    return not_above(x, N(high)) * not_above(-x, N(-low));
  }
  __device__ bool symmetric() const { return low == -high; }
  // The same as `gradient` if symmetric.
  template <class N>
  __device__ N symmetric_gradient(N x) const {
    return not_above(magnitude(x), N(high));
  }
};

// The gradient of a sample's reduced value times `factor`; 1 where the gradient is tensor `grad`.
template <class Acc, class PlanType>
__device__ Acc upstream(const PlanType& plan, int grad, int64_t sample, Acc factor) {
  if (plan.has(grad)) return 1;
  return static_cast<const Acc*>(plan.scale)[sample * plan.sample_stride[PlanType::kScale]] *
         factor;
}

// Times `factor`.
template <bool kKey, class S>
__device__ void draw_or_load(const S& slot, int tensor, typename S::Numbers& eps,
                             typename S::Acc factor = 1) {
  if constexpr (kKey) {
    slot.normals(eps, 0, factor);
  } else {
    slot.load_or_zero(tensor, eps);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) eps[v] *= factor;
  }
}

// ---- affine

template <class Acc, bool kKey>
struct Affine {
  enum { kX, kY, kZ, kEps, kOut, kTensors };
  static constexpr bool kSums = false, kDraws = kKey, kBySample = true;
  Table<Acc> table;

  struct Sample {
    Acc of_x, of_y, of_z, of_eps;

    template <class S>
    __device__ void operator()(const S& slot) const {
      typename S::Numbers x, y, z, eps;
      slot.load(kX, x);
      slot.load_or_zero(kY, y);
      slot.load_or_zero(kZ, z);
      draw_or_load<kKey>(slot, kEps, eps);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v)
        x[v] = madd(of_eps, eps[v], madd(of_z, z[v], madd(of_y, y[v], of_x * x[v])));
      slot.store(kOut, x);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType& plan, int64_t sample) const {
    const auto row = table.row(sample);
    return {row[0], row.get(1, plan.has(kY)), row.get(2, plan.has(kZ)),
            row.get(3, kKey || plan.has(kEps))};
  }
};

template <>
constexpr int kBlocks<Affine<float, false>, float, Walk::kFlat> = kPairInstructions ? 5 : 1;
template <class T>
constexpr int kBlocks<Affine<float, true>, T, Walk::kFlat> = kPairInstructions ? 1 : 3;

// ---- noise_loss

enum LossColumn { kTargetX0, kTargetNoise, kWeight, kOffset };

template <class Acc, bool kKey>
struct NoiseLoss {
  enum { kPred, kX0, kEps, kGradPred, kLoss, kTensors };
  static constexpr bool kSums = true, kDraws = kKey, kBySample = true;
  Table<Acc> table;
  SampleValues<Acc> sample_weight;
  Acc grad_factor;  // of the gradient, where it is asked for with the value

  struct Sample {
    Acc target_x0, target_noise, weight, offset, grad_factor;

    template <class S>
    __device__ Acc operator()(const S& slot) const {
      using N = typename S::Number;
      typename S::Numbers d, x0, eps;
      slot.load(kPred, d);
      slot.load_or_zero(kX0, x0);
      draw_or_load<kKey>(slot, kEps, eps);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v)
        d[v] = madd(-target_noise, eps[v], madd(-target_x0, x0[v], d[v]));
      if (slot.has(kGradPred)) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) x0[v] = (Acc(2) * weight * grad_factor) * d[v];
        slot.store(kGradPred, x0);
      }
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) d[v] = weighted_square(d[v], N(weight), N(offset));
      if (slot.has(kLoss)) slot.store(kLoss, d);
      return slot.sum(d);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType& plan, int64_t sample) const {
    const auto row = table.row(sample);
    return {row.get(kTargetX0, plan.has(kX0)), row.get(kTargetNoise, kKey || plan.has(kEps)),
            row[kWeight] * sample_weight[sample], row[kOffset], grad_factor};
  }
};

template <class T>
constexpr int kBlocks<NoiseLoss<float, true>, T, Walk::kFlat> = 3;
template <>
constexpr int kBlocks<NoiseLoss<float, false>, float, Walk::kFlat> = kPairInstructions ? 1 : 5;

template <class Acc, bool kKey>
struct NoiseLossBackward {
  enum { kGrad, kPred, kX0, kEps, kGradEps, kGradX0, kGradPred, kTensors };
  static constexpr bool kSums = false, kDraws = kKey, kBySample = true;
  Table<Acc> table;
  SampleValues<Acc> sample_weight;
  Acc grad_factor;

  struct Sample {
    Acc target_x0, target_noise, twice_weight;

    template <class S>
    __device__ void operator()(const S& slot) const {
      typename S::Numbers g, d, x0, eps;
      slot.load(kPred, d);
      slot.load_or_zero(kX0, x0);
      draw_or_load<kKey>(slot, kEps, eps);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        d[v] = madd(-target_noise, eps[v], madd(-target_x0, x0[v], d[v]));
        d[v] *= twice_weight;
      }
      if (slot.has(kGrad)) {
        slot.load(kGrad, g);
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) d[v] *= g[v];
      }
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        x0[v] = -target_x0 * d[v];
        eps[v] = -target_noise * d[v];
      }
      if (slot.has(kGradPred)) slot.store(kGradPred, d);
      if (slot.has(kGradX0)) slot.store(kGradX0, x0);
      if (!kKey && slot.has(kGradEps)) slot.store(kGradEps, eps);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType& plan, int64_t sample) const {
    const auto row = table.row(sample);
    return {
        row.get(kTargetX0, plan.has(kX0)), row.get(kTargetNoise, kKey || plan.has(kEps)),
        Acc(2) * row[kWeight] * sample_weight[sample] * upstream(plan, kGrad, sample, grad_factor)};
  }
};

template <class T>
constexpr int kBlocks<NoiseLossBackward<float, true>, T, Walk::kFlat> =
    kPairInstructions == (sizeof(T) == 4) ? 3 : 1;

// ---- sampler_step

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

template <class Acc>
struct StepRow {
  Acc x0_x_t, x0_pred, mean_x0, mean_x_t, mean_pred;
  Acc noise, half_log_variance, half_log_variance_values;

  // A factor of the prediction goes into its coefficients.
  template <class Row>
  __device__ StepRow(const Row& row, Acc pred_factor, bool clips, bool noisy, bool learned)
      : x0_x_t(row.get(kX0Xt, clips)),
        x0_pred(row.get(kX0Pred, clips) * pred_factor),
        mean_x0(row.get(kMeanX0, clips)),
        mean_x_t(row[kMeanXt]),
        mean_pred(row[kMeanPred] * pred_factor),
        noise(row.get(kStd, noisy)),
        half_log_variance(Acc(0.5) * row.get(kLogVariance, learned)),
        half_log_variance_values(Acc(0.5) * row.get(kLogVarianceValues, learned)) {}

  template <class N>
  __device__ N x0(N x_t, N m) const {
    return madd(N(x0_pred), m, x0_x_t * x_t);
  }
  template <class Exp, class N>
  __device__ N learned_factor(N values) const {
    const N units = Acc(Exp::kUnits);
    return Exp::of_units(madd(units * half_log_variance_values, values, units * half_log_variance));
  }
};

// kWithX0: x0 is an output as well, and counts whether it is clipped or not.
template <class Acc, bool kKey, bool kWithX0>
struct SamplerStep {
  enum { kXt, kPred, kVarValues, kUncond, kEps, kX0, kOut, kTensors };
  static constexpr bool kSums = false, kDraws = kKey, kBySample = true;
  Table<Acc> table;
  SampleValues<Acc> guidance_factor, threshold;
  Acc guidance_scale;
  Clip<Acc> clip;
  bool clips;  // to the bounds, or to the threshold

  struct Sample {
    StepRow<Acc> row;
    Acc guidance_scale;
    Clip<Acc> clip;
    bool clips;

    template <class S>
    __device__ void operator()(const S& slot) const {
      using N = typename S::Number;
      typename S::Numbers x, m, values, uncond, eps;
      slot.load(kXt, x);
      slot.load(kPred, m);
      slot.load_or_zero(kVarValues, values);
      slot.load_or_zero(kUncond, uncond);
      draw_or_load<kKey>(slot, kEps, eps);
      if (slot.has(kUncond)) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) m[v] = guide(m[v], uncond[v], N(guidance_scale));
      }
      if (slot.has(kVarValues)) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v)
          eps[v] *= row.noise * row.template learned_factor<typename S::Exp>(values[v]);
      } else {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) eps[v] *= row.noise;
      }
      // A coefficient of 0 adds no noise, whatever it and its deviation are.
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) eps[v] = row.noise == Acc(0) ? N(0) : eps[v];
      if constexpr (kWithX0) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) {
          values[v] = clip(row.x0(x[v], m[v]));
          eps[v] = madd(row.mean_x0, values[v], eps[v]);
        }
        slot.store(kX0, values);
      } else if (clips) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v)
          eps[v] = madd(row.mean_x0, clip(row.x0(x[v], m[v])), eps[v]);
      }
      // A coefficient of 0 adds nothing: a clipped x0 of an infinite prediction is a bound.
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v)
        eps[v] = row.mean_pred == Acc(0) ? eps[v] : madd(row.mean_pred, m[v], eps[v]);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) x[v] = madd(row.mean_x_t, x[v], eps[v]);
      slot.store(kOut, x);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType& plan, int64_t sample) const {
    Sample s{{table.row(sample), guidance_factor[sample], clips, kKey || plan.has(kEps),
              plan.has(kVarValues)},
             guidance_scale,
             clip,
             clips};
    if (threshold.data) {  // x0 in units of it
      const Acc unit = Acc(1) / threshold[sample];
      s.clip = {Acc(-1), Acc(1)};
      s.row.x0_x_t *= unit;
      s.row.x0_pred *= unit;
    }
    return s;
  }
};

template <bool kWithX0>
constexpr int kBlocks<SamplerStep<float, true, kWithX0>, float, Walk::kFlat> = 3;
template <>
constexpr int kBlocks<SamplerStep<float, false, false>, __half, Walk::kFlat> =
    kPairInstructions ? 1 : 4;

template <class Acc, bool kKey>
struct SamplerStepBackward {
  enum {
    kGrad,
    kXt,
    kPred,
    kVarValues,
    kUncond,
    kEps,
    kGradEps,
    kGradUncond,
    kGradVarValues,
    kGradPred,
    kGradXt,
    kTensors
  };
  static constexpr bool kSums = false, kDraws = kKey, kBySample = true;
  Table<Acc> table;
  Acc guidance_scale, uncond_scale;  // 1 and 0 without guidance
  Clip<Acc> clip;
  bool clips;

  struct Sample {
    StepRow<Acc> row;
    Acc x0_uncond;
    Acc x_t_inside, pred_inside;  // derivatives of the mean where x0 depends on its arguments
    Acc guidance_scale, uncond_scale;
    Clip<Acc> clip;
    bool clips;
    bool noisy;

    template <class S>
    __device__ void operator()(const S& slot) const {
      typename S::Numbers g;
      slot.load(kGrad, g);
      through_mean(slot, g);
      if (noisy) {
        through_noise(slot, g);
      } else {
        S::fill(Acc(0), g);
        if (!kKey && slot.has(kGradEps)) slot.store(kGradEps, g);
        if (slot.has(kGradVarValues)) slot.store(kGradVarValues, g);
      }
    }

   private:
    template <class S>
    __device__ void through_mean(const S& slot, const typename S::Numbers& g) const {
      using N = typename S::Number;
      typename S::Numbers x, m, x0;
      if (clips) {
        slot.load(kXt, x);
        slot.load(kPred, m);
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) x0[v] = row.x0(x[v], m[v]);
        if (slot.has(kUncond)) {
          slot.load(kUncond, m);
#pragma unroll
          for (int v = 0; v < S::kNumbers; ++v) x0[v] = madd(N(x0_uncond), m[v], x0[v]);
        }
        if (clip.symmetric()) {
#pragma unroll
          for (int v = 0; v < S::kNumbers; ++v) x0[v] = clip.symmetric_gradient(x0[v]);
        } else {
#pragma unroll
          for (int v = 0; v < S::kNumbers; ++v) x0[v] = clip.gradient(x0[v]);
        }
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) {
          x[v] = g[v] * madd(N(x_t_inside), x0[v], N(row.mean_x_t));
          m[v] = g[v] * madd(N(pred_inside), x0[v], N(row.mean_pred));
        }
        store_means(slot, x, m);
      } else {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) {
          x[v] = row.mean_x_t * g[v];
          m[v] = row.mean_pred * g[v];
        }
        store_means(slot, x, m);
      }
    }

    template <class S>
    __device__ void store_means(const S& slot, const typename S::Numbers& of_x_t,
                                typename S::Numbers& of_m) const {
      typename S::Numbers of_uncond;
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        of_uncond[v] = uncond_scale * of_m[v];
        of_m[v] *= guidance_scale;
      }
      if (slot.has(kGradXt)) slot.store(kGradXt, of_x_t);
      if (slot.has(kGradPred)) slot.store(kGradPred, of_m);
      if (slot.has(kGradUncond)) slot.store(kGradUncond, of_uncond);
    }

    template <class S>
    __device__ void through_noise(const S& slot, typename S::Numbers& g) const {
      typename S::Numbers std, eps;
      // Of drawn noise the gradient of the values is all there is.
      const bool of_values = kKey || slot.has(kGradVarValues);
      if (of_values) draw_or_load<kKey>(slot, kEps, eps, row.noise * row.half_log_variance_values);
      if (kKey || slot.has(kVarValues)) {
        slot.load(kVarValues, std);
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v)
          std[v] = g[v] * row.template learned_factor<typename S::Exp>(std[v]);
      } else {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) std[v] = g[v];
      }
      if (!kKey && slot.has(kGradEps)) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) g[v] = row.noise * std[v];
        slot.store(kGradEps, g);
      }
      if (of_values) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) std[v] *= eps[v];
        slot.store(kGradVarValues, std);
      }
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType& plan, int64_t sample) const {
    Sample s{{table.row(sample), Acc(1), clips, kKey || plan.has(kEps), plan.has(kVarValues)},
             Acc(0),
             Acc(0),
             Acc(0),
             guidance_scale,
             uncond_scale,
             clip,
             clips};
    s.x_t_inside = s.row.mean_x0 * s.row.x0_x_t;
    s.pred_inside = s.row.mean_x0 * s.row.x0_pred;
    s.x0_uncond = s.row.x0_pred * uncond_scale;
    s.row.x0_pred *= guidance_scale;
    s.noisy = s.row.noise != Acc(0) && (plan.has(kGradVarValues) || (!kKey && plan.has(kGradEps)));
    return s;
  }
};

template <class T>
constexpr int kBlocks<SamplerStepBackward<float, true>, T, Walk::kFlat> = kAmpere ? 3 : 1;
template <class T>
constexpr int kBlocks<SamplerStepBackward<float, false>, T, Walk::kFlat> =
    kPairInstructions ? 3 : 4;
template <class T>
constexpr bool kKept<SamplerStepBackward<float, false>, T> = sizeof(T) == 4;

// ---- what a step needs to know of a whole sample

// Mean and sum of squared deviations of n numbers; merged as in Chan, Golub and LeVeque, "Updating
// formulae and a pairwise algorithm for computing sample variances", 1979, (1.5).
struct Moments {
  double mean, squares;
  __device__ void merge(double n, const Moments& other, double other_n) {
    const double share = other_n / (n + other_n), delta = other.mean - mean;
    mean += delta * share;
    squares += other.squares + delta * delta * n * share;
  }
};

// Of the prediction and of what guidance makes of it.
struct GuidanceMoments {
  double n;
  Moments plain, guided;

  __device__ GuidanceMoments& operator+=(const GuidanceMoments& other) {
    if (other.n == 0) return *this;
    plain.merge(n, other.plain, other.n);
    guided.merge(n, other.guided, other.n);
    n += other.n;
    return *this;
  }
  // rescale std(plain) / std(guided) + 1 - rescale, std as torch's, unbiased.
  __device__ double factor(double rescale) const {
    const double ratio = sqrt(plain.squares / (n - 1)) / sqrt(guided.squares / (n - 1));
    return rescale * ratio + (1 - rescale);
  }
};
__device__ inline Moments shuffle_down(const Moments& x, int step) {
  return {shuffle_down(x.mean, step), shuffle_down(x.squares, step)};
}
__device__ inline GuidanceMoments shuffle_down(const GuidanceMoments& x, int step) {
  return {shuffle_down(x.n, step), shuffle_down(x.plain, step), shuffle_down(x.guided, step)};
}

// Of the numbers of one thread: sums of what differs from the first of them. As that is one of
// them, the subtraction at the end cancels at most as many times the rounding error as there are.
template <class Acc>
struct ShiftedSums {
  Acc shift;
  double sum = 0, squares = 0;

  template <class S>
  __device__ void add(const S& slot, typename S::Numbers& x, bool first) {
    if (first) shift = S::lane(x, 0);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) x[v] -= shift;
    sum += slot.sum(x);
#pragma unroll
    for (int v = 0; v < S::kNumbers; ++v) x[v] *= x[v];
    squares += slot.sum(x);
  }
  __device__ Moments moments(double n) const { return {shift + sum / n, squares - sum * sum / n}; }
};

template <class Acc>
struct GuidanceFactor {
  enum { kPred, kUncond, kTensors };
  Acc guidance_scale;
  double guidance_rescale;
  GuidanceMoments* partials;  // [sample][block] where more than one block serves a sample
};

template <class Body, class T, Walk kWalk>
__global__ void __launch_bounds__(kThreads, 1)
    guidance_moments(const __grid_constant__ Plan<Body::kTensors> plan,
                     const __grid_constant__ Body body) {
  using Acc = typename Arithmetic<T>::type;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  ShiftedSums<Acc> plain, guided;
  int64_t n = 0;
  if (sample < plan.samples)
    for_sample_slots<T, kWalk>(plan, Stream{}, sample, [&](const auto& slot) {
      using S = std::decay_t<decltype(slot)>;
      typename S::Numbers pred, m;
      slot.load(Body::kPred, pred);
      slot.load(Body::kUncond, m);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v)
        m[v] = guide(pred[v], m[v], typename S::Number(body.guidance_scale));
      plain.add(slot, pred, n == 0);
      guided.add(slot, m, n == 0);
      n += slot.count();
    });
  GuidanceMoments total{};
  if (n > 0) total = {static_cast<double>(n), plain.moments(n), guided.moments(n)};
  total = sum_threads(total, blockDim.x);
  if (threadIdx.x || sample >= plan.samples) return;
  if (body.partials) {
    body.partials[sample * gridDim.y + blockIdx.y] = total;
  } else {
    static_cast<Acc*>(plan.result)[sample] = static_cast<Acc>(total.factor(body.guidance_rescale));
  }
}

// blockDim.x threads a sample.
template <class Acc>
__global__ void __launch_bounds__(kThreads, 1)
    merge_moments(const GuidanceMoments* partials, Acc* out, int64_t samples, int64_t blocks,
                  double guidance_rescale) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  GuidanceMoments total{};
  if (sample < samples)
    for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x)
      total += partials[sample * blocks + i];
  total = sum_threads(total, blockDim.x);
  if (threadIdx.x == 0 && sample < samples)
    out[sample] = static_cast<Acc>(total.factor(guidance_rescale));
}

// The bits of numbers >= 0 are ordered as they are.
__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ inline unsigned long long magnitude_bits(double x) {  // the type atomicMin knows
  return static_cast<unsigned long long>(__double_as_longlong(x)) & 0x7fffffffffffffffull;
}
__device__ inline double from_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline double from_bits(unsigned long long bits) { return __longlong_as_double(bits); }

template <class Acc>
struct DynamicThreshold {
  enum { kXt, kPred, kUncond, kTensors };
  Table<Acc> table;
  SampleValues<Acc> guidance_factor;
  Acc guidance_scale;
  double rank;  // of the quantile, counted from 0
  double max_value;
};

// One block a sample selects by radix, digit by digit from the top: how many numbers with the
// digits found so far have which next digit. They are computed again for each digit, not kept.
constexpr int kThresholdThreads = 1024;
constexpr int kDigit = 11, kBins = 1 << kDigit;
// Most numbers share a few exponents: neighbours in a warp count in tables of their own.
constexpr int kCopies = 4;

template <class Body, class T, Walk kWalk>
__global__ void __launch_bounds__(kThresholdThreads, 1)
    select_threshold(const __grid_constant__ Plan<Body::kTensors> plan,
                     const __grid_constant__ Body body) {
  using Acc = typename Arithmetic<T>::type;
  using Bits = decltype(magnitude_bits(Acc(0)));
  __shared__ unsigned counts[kBins][kCopies];
  __shared__ int64_t warps[kThresholdThreads / 32], left_of_digit;
  __shared__ Bits found_bits, next_bits;
  const int64_t sample = blockIdx.x;
  const int thread = threadIdx.x, lane = thread % 32;
  const auto row = body.table.row(sample);
  const Acc of_x = row[kX0Xt], of_m = row[kX0Pred] * body.guidance_factor[sample];

  int64_t left = static_cast<int64_t>(body.rank);  // numbers below the wanted one, of these digits
  Bits found = 0, next = ~Bits(0);
  if (thread == 0) next_bits = next;
#pragma unroll 1
  for (int shift = 8 * sizeof(Bits) - 1; shift > 0;) {
    const int above = shift;
    shift = max(shift - kDigit, 0);
    const Bits mask = (Bits(1) << (above - shift)) - 1;
    for (int i = thread; i < kBins; i += kThresholdThreads)
      for (int c = 0; c < kCopies; ++c) counts[i][c] = 0;
    __syncthreads();
    for_sample_slots<T, kWalk>(plan, Stream{}, sample, [&](const auto& slot) {
      using S = std::decay_t<decltype(slot)>;
      typename S::Numbers x, m, uncond;
      slot.load(Body::kXt, x);
      slot.load(Body::kPred, m);
      if (slot.has(Body::kUncond)) {
        slot.load(Body::kUncond, uncond);
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v)
          m[v] = guide(m[v], uncond[v], typename S::Number(body.guidance_scale));
      }
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) m[v] = madd(of_m, m[v], of_x * x[v]);
#pragma unroll
      for (int v = 0; v < S::kLanes; ++v) {
        if (v >= slot.count()) break;
        const Bits bits = magnitude_bits(S::lane(m, v));
        if (bits >> above == found >> above) {
          atomicAdd(&counts[bits >> shift & mask][lane % kCopies], 1u);
        } else if (shift == 0 && bits > found && bits < next) {
          next = bits;
        }
      }
    });
    __syncthreads();
    // Of the digits 2 thread and 2 thread + 1: how many numbers, and how many below.
    int64_t count[2] = {};
    for (int c = 0; c < kCopies; ++c) {
      count[0] += counts[2 * thread][c];
      count[1] += counts[2 * thread + 1][c];
    }
    int64_t below = count[0] + count[1];
    for (int step = 1; step < 32; step *= 2) {
      const int64_t other = __shfl_up_sync(0xffffffffu, below, step);
      if (lane >= step) below += other;
    }
    if (lane == 31) warps[thread / 32] = below;
    __syncthreads();
    for (int w = 0; w < thread / 32; ++w) below += warps[w];
    below -= count[0] + count[1];
    for (int i = 0; i < 2; ++i) {
      if (below <= left && left < below + count[i]) {
        found_bits = found | static_cast<Bits>(2 * thread + i) << shift;
        left_of_digit = left - below;
        // The next number is the same once more, or it is found below.
        if (shift == 0 && left + 1 < below + count[i]) next_bits = found_bits;
      }
      below += count[i];
    }
    __syncthreads();
    const Bits prefix = found;
    found = found_bits;
    left = left_of_digit;
    if (shift > 0) continue;
    for (int i = 1; i >= 0; --i) {
      const Bits bits = prefix | static_cast<Bits>(2 * thread + i);
      if (count[i] && bits > found) next = bits;
    }
  }
  if (next != ~Bits(0)) atomicMin(&next_bits, next);
  __syncthreads();
  if (thread) return;
  const double low = from_bits(found), fraction = body.rank - floor(body.rank);
  const double high = next_bits == ~Bits(0) ? low : from_bits(next_bits);
  const Acc quantile = static_cast<Acc>(low + fraction * (high - low));
  static_cast<Acc*>(plan.result)[sample] =
      clamp(quantile, Acc(1), static_cast<Acc>(body.max_value));
}

// ---- vlb

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

template <class Acc>
struct VlbConstants {
  Acc vlb_scale, simple_scale;
  Clip<Acc> clip;
  bool clips, detach_mean;
};

// A sample's coefficients of the arguments of twice_step_kl or step_kl_gradient; in the decoder's
// samples, of x0_hat - x0 and of the log-variance.
template <class Acc>
struct VlbRow {
  Acc of_x0, of_noise, of_pred;  // with clips, of x0_hat instead of x0_hat - x0
  Acc exponent, of_values;
  Acc unit;  // what the first three are multiples of
  bool decoder;

  // `share`: of the logarithm of the variances' ratio, in powers of 2, the exponent.
  template <class Row>
  __device__ VlbRow(const Row& row, bool clips, bool learned, double share)
      : decoder(row[kDecoder] > Acc(0.5)) {
    const Acc log2_e = Acc(share / kLn2);
    const Acc true_lv = row[kTrueLogVariance], lv = row[kVlbLogVariance];
    const Acc lv_values = row.get(kVlbLogVarianceValues, learned);
    const Acc deviations = magnitude(row[kVlbMeanX0]) * FullExp::of(Acc(-0.5) * true_lv);
    exponent = decoder ? lv : log2_e * (true_lv - lv);
    of_values = decoder ? lv_values : -log2_e * lv_values;
    // Above 0: an infinite bound of a clip times 0 would be a NaN.
    unit = decoder ? Acc(1) : at_least(finite(deviations), std::numeric_limits<Acc>::min());
    of_x0 = (clips ? unit : Acc(0)) - finite(unit * row[kDiffX0]);
    of_noise = -finite(unit * row[kDiffNoise]);
    of_pred = -finite(unit * row[kDiffPred]);
  }

  // x0_hat - x0 or, with clips, x0_hat.
  template <class N>
  __device__ N mean(N pred, N x0, N eps) const {
    return madd(of_pred, pred, madd(of_noise, eps, of_x0 * x0));
  }
  // In the same unit.
  __device__ Clip<Acc> clip(const Clip<Acc>& bounds) const {
    return {unit * bounds.low, unit * bounds.high};
  }
  template <class N>
  __device__ N log_variance(N values) const {
    return madd(N(of_values), values, N(exponent));
  }

 private:
  // 0 times it is 0.
  static __device__ Acc finite(Acc x) {
    constexpr Acc kMost = std::numeric_limits<Acc>::max();
    return clamp(x, -kMost, kMost);
  }
};

// A call, not a copy for each lane: one time step of all takes it, and it is most of the code.
inline __device__ __noinline__ DecoderNll call_decoder_nll(double d, double x0, double lv) {
  return decoder_nll(d, x0, lv);
}

template <class Acc, bool kKey>
struct Vlb {
  enum { kPred, kVarValues, kX0, kEps, kLoss, kTensors };
  static constexpr bool kSums = true, kDraws = kKey, kBySample = true;
  Table<Acc> table;
  VlbConstants<Acc> constants;

  struct Sample {
    VlbRow<Acc> row;
    VlbConstants<Acc> c;

    template <class S>
    __device__ Acc operator()(const S& slot) const {
      using N = typename S::Number;
      typename S::Numbers pred, lv, x0, eps, d;
      slot.load(kPred, pred);
      slot.load_or_zero(kVarValues, lv);
      slot.load(kX0, x0);
      draw_or_load<kKey>(slot, kEps, eps);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        lv[v] = row.log_variance(lv[v]);
        d[v] = row.mean(pred[v], x0[v], eps[v]);
      }
      if (c.clips) {
        const Clip<Acc> clip = row.clip(c.clip);
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) d[v] = clip(d[v]) - row.unit * x0[v];
      }
      if (row.decoder) {
#pragma unroll
        for (int v = 0; v < S::kLanes; ++v) {
          Acc& lane = S::lane(d, v);
          lane = Acc(2 * call_decoder_nll(-lane, S::lane(x0, v), S::lane(lv, v)).value);
        }
      } else {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) d[v] = twice_step_kl<typename S::Exp>(d[v], lv[v]);
      }
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) d[v] *= Acc(0.5) * c.vlb_scale;
      if (c.simple_scale != Acc(0)) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v)
          d[v] = weighted_square(pred[v] - eps[v], N(c.simple_scale), d[v]);
      }
      if (slot.has(kLoss)) slot.store(kLoss, d);
      return slot.sum(d);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType& plan, int64_t sample) const {
    return {{table.row(sample), constants.clips, plan.has(kVarValues), 0.5}, constants};
  }
};

template <class T>
constexpr int kBlocks<Vlb<float, true>, T, Walk::kFlat> = kPairInstructions ? 1 : 2;
template <>
constexpr int kBlocks<Vlb<float, false>, __half, Walk::kFlat> = kAmpere ? 3 : 1;
template <class T>
constexpr bool kKept<Vlb<float, false>, T> = sizeof(T) == 4;

template <class Acc, bool kKey>
struct VlbBackward {
  enum { kGrad, kPred, kVarValues, kX0, kEps, kGradVarValues, kGradPred, kTensors };
  static constexpr bool kSums = false, kDraws = kKey, kBySample = true;
  Table<Acc> table;
  VlbConstants<Acc> constants;
  Acc grad_factor;

  struct Sample {
    VlbRow<Acc> row;
    VlbConstants<Acc> c;
    Acc of_d, of_lv, of_simple;  // what the derivatives are times
    // A bit for each lane whose loss does not depend on pred: an infinite derivative times 0 would
    // be a NaN.
    unsigned always_constant;

    template <class S>
    __device__ void operator()(const S& slot) const {
      using N = typename S::Number;
      typename S::Numbers g, pred, lv, x0, eps, d;
      unsigned constant = always_constant;
      slot.load(kPred, pred);
      slot.load_or_zero(kVarValues, lv);
      slot.load(kX0, x0);
      draw_or_load<kKey>(slot, kEps, eps);
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        lv[v] = row.log_variance(lv[v]);
        d[v] = row.mean(pred[v], x0[v], eps[v]);
      }
      if (c.clips) {
        const Clip<Acc> clip = row.clip(c.clip);
#pragma unroll
        for (int v = 0; v < S::kLanes; ++v) {
          const Acc x0_hat = S::lane(d, v);
          if (clip.gradient(x0_hat) == Acc(0)) constant |= 1u << v;
          S::lane(d, v) = clip(x0_hat) - row.unit * S::lane(x0, v);
        }
      }
      if (row.decoder) {
#pragma unroll
        for (int v = 0; v < S::kLanes; ++v) {
          Acc &by_d = S::lane(d, v), &by_lv = S::lane(lv, v);
          const auto nll = call_decoder_nll(-by_d, S::lane(x0, v), by_lv);
          by_d = -Acc(nll.d);
          by_lv = Acc(nll.lv);
        }
      } else {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) {
          const auto kl = step_kl_gradient<typename S::Exp>(d[v], lv[v]);
          d[v] = kl.s;
          lv[v] = kl.twice_lv;
        }
      }
#pragma unroll
      for (int v = 0; v < S::kNumbers; ++v) {
        d[v] *= of_d;
        lv[v] *= of_lv;
      }
      if (constant != 0) {
#pragma unroll
        for (int v = 0; v < S::kLanes; ++v)
          if (constant >> v & 1) S::lane(d, v) = 0;
      }
      if (c.simple_scale != Acc(0)) {
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) d[v] = madd(N(of_simple), pred[v] - eps[v], d[v]);
      }
      if (slot.has(kGrad)) {
        slot.load(kGrad, g);
#pragma unroll
        for (int v = 0; v < S::kNumbers; ++v) {
          d[v] *= g[v];
          lv[v] *= g[v];
        }
      }
      if (slot.has(kGradPred)) slot.store(kGradPred, d);
      if (slot.has(kGradVarValues)) slot.store(kGradVarValues, lv);
    }
  };
  template <class PlanType>
  __device__ Sample of(const PlanType& plan, int64_t sample) const {
    Sample s{{table.row(sample), constants.clips, plan.has(kVarValues), 1}, constants};
    const Acc g = upstream(plan, kGrad, sample, grad_factor), vlb = g * constants.vlb_scale;
    s.of_d = constants.detach_mean ? Acc(0) : vlb * s.row.of_pred;
    s.of_lv = vlb * s.row.of_values * (s.row.decoder ? Acc(1) : Acc(0.5 * kLn2));
    s.of_simple = Acc(2) * constants.simple_scale * g;
    s.always_constant = s.of_d == Acc(0) ? ~0u : 0u;
    return s;
  }
};

template <class T>
constexpr int kBlocks<VlbBackward<float, true>, T, Walk::kFlat> = kAmpere ? 2 : 1;

}  // namespace genkern::cuda
