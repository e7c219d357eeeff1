// What the operators ask of the kernels: plain structures, no torch.
//
// kernels/*.cpp are compiled once for each instruction set. They include neither torch's headers
// nor containers of the standard library: an inline function compiled there with AVX-512 could be
// the copy that the linker keeps for all.
#pragma once

#include <cstdint>

#include "genkern/gan.h"
#include "genkern/philox.h"

namespace genkern {

enum class Type { kFloat, kDouble, kBFloat16, kHalf };

// torch's numbering, extended.
enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2, kBatchMean = 3, kSample = 4 };

constexpr int kMaxDims = 64;  // torch's own limit

// A tensor in the iteration's shape; strides in elements. Null data: absent.
struct View {
  void* data = nullptr;
  const int64_t* strides = nullptr;
  int64_t draw_stride = 0;  // between the K draws of num_samples
  bool wide = false;        // stored in the type of the arithmetic, not in the call's
};

struct Shape {
  int dims = 0;
  const int64_t* sizes = nullptr;
  int64_t samples = 1;  // size of dim 0, 1 for 0-d
};

// Keys, one or one a sample; null: none.
struct Keys {
  const Key* data = nullptr;
  bool per_sample = false;
};

// Runs body(context, begin, end) over [0, n) on torch's threads, at least `grain` each.
using Parallel = void (*)(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t),
                          void* context);

struct Call {
  Type type;
  Shape shape;
  Reduction reduction = Reduction::kNone;
  Parallel parallel;
  // Scratch for partial sums, allocated by the caller: `partials(call)` doubles.
  double* partials = nullptr;
  // Samples are worked on one after the other: their coefficients differ.
  bool by_sample = false;
};

struct Numbers {
  Type type;
  Keys keys;
  int64_t samples, length;  // numbers in each sample's stream
  void* out;
  bool normal;
  Parallel parallel;
};

struct Posterior : Call {
  View mu, logvar, prior_mu, prior_logvar, noise;
  Keys keys;
  int64_t draws = 1;
  double prior_mu_value, prior_logvar_value, free_bits, logvar_min, logvar_max;
  // Forward: z and kl, where wanted. A reduced kl has null strides.
  View z, kl;
  // Backward.
  View grad_z, grad_kl;
  View grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, grad_noise;
};

struct Likelihood : Call {
  View x_hat, x, logvar;  // bernoulli: x_hat are the logits
  double sigma, logvar_min, logvar_max;
  View nll;
  View grad, grad_x_hat, grad_x, grad_logvar;
};

// Coefficients, a row for each sample: row t of the table, or the only row, or the sample's own.
struct Table {
  const void* data = nullptr;  // of the arithmetic's type
  int64_t rows = 0, row_stride = 0, column_stride = 0;
  const int64_t* t = nullptr;
  int64_t t_stride = 0;  // 0: one t for all
  bool varies() const { return t ? t_stride != 0 : rows != 1; }
  int64_t row(int64_t sample) const { return t ? t[sample * t_stride] : rows == 1 ? 0 : sample; }
};

// A number for each sample, of the arithmetic's type.
struct SampleValues {
  const void* data = nullptr;
  int64_t stride = 0;
};

struct Affine : Call {
  View terms[4];  // x, y, z, noise
  Keys keys;
  Table table;
  View out;
};

struct NoiseLoss : Call {
  View pred, x0, noise;
  Keys keys;
  Table table;
  SampleValues sample_weight;
  View loss;
  View grad, grad_pred, grad_x0, grad_noise;
};

struct SamplerStep : Call {
  View x_t, pred, var_values, uncond, noise;
  Keys keys;
  Table table;
  SampleValues guidance_factor, threshold;
  double guidance_scale, x0_min, x0_max;
  View out, x0;
  View grad, grad_x_t, grad_pred, grad_var_values, grad_uncond, grad_noise;
};

// One number a sample.
struct SampleStatistic : Call {
  View x_t, pred, uncond;
  Table table;
  SampleValues guidance_factor;
  double guidance_scale, guidance_rescale, ratio, max_value;
  void* out;
};

struct Vlb : Call {
  View pred, var_values, x0, noise;
  Keys keys;
  Table table;
  double x0_min, x0_max, vlb_scale, simple_scale;
  bool detach_mean;
  View loss;
  View grad, grad_pred, grad_var_values;
};

// A term of x, and one of y added to it where y is there; or the first alone, of x - y.
struct Logits : Call {
  View x, y;
  LogitTerm x_term, y_term;
  bool difference = false;
  View value;
  // With the value, where wanted: the gradients for an upstream gradient of 1. Backward, of x alone
  // or of x - y: those for grad.
  View grad, grad_x, grad_y;
};

// A penalty on the norms of rows, the samples. Values of rows, one each or reduced, have views
// whose first stride counts.
struct GradientPenalty : Call {
  View grads;
  double center, weight;
  View penalty;
  // Backward: the gradient `out` of grads. Backward of that: grad_out is its upstream gradient,
  // grad_grad and out the gradients of grad and grads.
  View grad, grad_out, grad_grad, out;
  // Scratch: `partials` of the squares, as many of the products, and three numbers a row.
  double* products = nullptr;
  double* rows = nullptr;
};

struct Interpolation : Call {
  View real, fake;
  View weights;  // one a sample
  View mixed;
  View grad, grad_real, grad_fake, grad_weights;
};

struct RandomKernels {
  void (*numbers)(const Numbers&);
};

struct VaeKernels {
  void (*posterior)(const Posterior&);
  void (*posterior_backward)(const Posterior&);
  void (*bernoulli)(const Likelihood&);
  void (*bernoulli_backward)(const Likelihood&);
  void (*gaussian)(const Likelihood&);
  void (*gaussian_backward)(const Likelihood&);
};

struct DiffusionKernels {
  void (*affine)(const Affine&);
  void (*noise_loss)(const NoiseLoss&);
  void (*noise_loss_backward)(const NoiseLoss&);
  void (*sampler_step)(const SamplerStep&);
  void (*sampler_step_backward)(const SamplerStep&);
  void (*guidance_factor)(const SampleStatistic&);
  void (*dynamic_threshold)(const SampleStatistic&);
  void (*vlb)(const Vlb&);
  void (*vlb_backward)(const Vlb&);
};

struct GanKernels {
  void (*logits)(const Logits&);
  void (*logits_backward)(const Logits&);
  void (*penalty)(const GradientPenalty&);
  void (*penalty_backward)(const GradientPenalty&);
  void (*penalty_backward_backward)(const GradientPenalty&);
  void (*interpolate)(const Interpolation&);
  void (*interpolate_backward)(const Interpolation&);
};

#define GENKERN_DECLARE_KERNELS(capability)    \
  namespace capability {                       \
  const RandomKernels& random_kernels();       \
  const VaeKernels& vae_kernels();             \
  const DiffusionKernels& diffusion_kernels(); \
  const GanKernels& gan_kernels();             \
  }
GENKERN_DECLARE_KERNELS(baseline)
GENKERN_DECLARE_KERNELS(avx2)
GENKERN_DECLARE_KERNELS(avx512)
#undef GENKERN_DECLARE_KERNELS

// Elements a thread works on at a time: eight buffers of floats fit the smallest L1 caches.
constexpr int64_t kChunk = 1024;

// How a tensor is cut for reductions, from its shape alone. A segment is what is summed to one
// value: a sample, or everything. Long segments are cut into chunks, short ones are grouped.
struct Cut {
  int64_t segments, length;  // segments of `length` elements
  int64_t chunks;            // a segment
  int64_t group;             // segments a unit, where chunks == 1

  Cut(int64_t total, int64_t samples, Reduction reduction) {
    segments = reduction == Reduction::kSample ? samples : 1;
    length = segments ? total / segments : 0;
    chunks = length > kChunk ? (length + kChunk - 1) / kChunk : 1;
    group = chunks > 1 || length == 0 ? 1 : kChunk / length;
  }
  int64_t units() const { return chunks > 1 ? segments * chunks : (segments + group - 1) / group; }
  int64_t partials() const { return segments * chunks; }
};

static inline int64_t total(const Shape& shape) {
  int64_t n = 1;
  for (int d = 0; d < shape.dims; ++d) n *= shape.sizes[d];
  return n;
}

static inline Cut cut_of(const Call& call) {
  return Cut(total(call.shape), call.shape.samples,
             call.by_sample ? Reduction::kSample : call.reduction);
}

}  // namespace genkern
