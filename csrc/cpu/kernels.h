// What the operators ask of the kernels: plain structures, no torch.
//
// kernels/*.cpp are compiled once for each instruction set. They include neither torch's headers
// nor containers of the standard library: an inline function compiled there with AVX-512 could be
// the copy that the linker keeps for all.
#pragma once

#include <cstdint>

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

#define GENKERN_DECLARE_KERNELS(capability) \
  namespace capability {                    \
  const RandomKernels& random_kernels();    \
  const VaeKernels& vae_kernels();          \
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

}  // namespace genkern
