// The operators of libgenkern_cpu: checks, outputs, and a call of the kernels of this processor.
//
// Arguments come checked from Python; what is checked again here keeps a direct call of
// torch.ops.genkern.* from reading or writing outside a tensor.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "genkern/schemas.h"

namespace genkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (capability()) {
    case Capability::kAvx512:
      return avx512::kernels();
    case Capability::kAvx2:
      return avx2::kernels();
    case Capability::kBaseline:
      break;
  }
#endif
  return baseline::kernels();
}

void parallel(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (n <= 0) return;
  if (n <= grain) return body(context, 0, n);
  torch::stable::parallel_for(0, n, grain,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

Type type_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Half:
      return Type::kHalf;
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

ScalarType arithmetic(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

int64_t samples(const Tensor& x) { return x.dim() ? x.size(0) : 1; }

// Pages of 2 MB for a large new tensor: without, the first write to each 4 KB is a page fault,
// which can cost more than the kernel. Takes effect where the system leaves the choice to programs.
Tensor with_large_pages(Tensor x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(x.numel()) * x.element_size();
  const uintptr_t first = (begin + kPage - 1) & ~(kPage - 1), last = end & ~(kPage - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return x;
}

Tensor new_like(const Tensor& x) { return with_large_pages(torch::stable::empty_like(x)); }

Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return with_large_pages(torch::stable::new_empty(like, shape, dtype));
}

Tensor reduced(const Tensor& like, Reduction reduction) {
  std::vector<int64_t> shape;
  if (reduction == Reduction::kSample) shape.push_back(samples(like));
  return torch::stable::new_empty(like, shape, arithmetic(like.scalar_type()));
}

// Checks the tensors of a call and keeps what its views point into.
class Arguments {
 public:
  Arguments(const char* function, const Tensor& like) : function_(function), like_(like) {
    shape_.dims = static_cast<int>(like.dim());
    shape_.sizes = like.sizes().data();
    shape_.samples = samples(like);
    STD_TORCH_CHECK(like.is_cpu(), function_, ": expected tensors on the CPU");
    strides_.reserve(kMaxDims);
  }

  Shape shape() const { return shape_; }
  Type type() const { return type_of(like_.scalar_type()); }

  // A tensor of the call's shape and dtype.
  View view(const Tensor& x) const {
    check(x, like_.scalar_type());
    STD_TORCH_CHECK(x.dim() == like_.dim(), function_, ": expected tensors of one shape");
    for (int64_t d = 0; d < x.dim(); ++d) {
      STD_TORCH_CHECK(x.size(d) == like_.size(d), function_, ": expected tensors of one shape");
    }
    return {x.data_ptr(), x.strides().data()};
  }
  View view(const Optional& x) const { return x ? view(*x) : View{}; }

  // A tensor with K draws in front, where K is given.
  View drawn(const Tensor& x, std::optional<int64_t> draws) const {
    if (!draws) return view(x);
    check(x, like_.scalar_type());
    bool same = x.dim() == like_.dim() + 1 && x.size(0) == *draws;
    for (int64_t d = 0; same && d < like_.dim(); ++d) same = x.size(d + 1) == like_.size(d);
    STD_TORCH_CHECK(same, function_, ": expected a tensor of shape (num_samples, *mu.shape)");
    return {x.data_ptr(), x.strides().data() + 1, x.stride(0)};
  }

  // The upstream gradient of a value reduced from the call's shape, broadcast over it.
  View upstream(const Tensor& grad, Reduction reduction) {
    if (reduction == Reduction::kNone) return view(grad);
    check(grad, arithmetic(like_.scalar_type()));
    const bool per_sample = reduction == Reduction::kSample;
    STD_TORCH_CHECK(per_sample ? grad.dim() == 1 && grad.size(0) == shape_.samples
                               : grad.dim() == 0,
                    function_, ": the upstream gradient has the wrong shape");
    strides_.assign(static_cast<size_t>(shape_.dims), 0);
    if (per_sample && shape_.dims) strides_[0] = grad.stride(0);
    return {grad.data_ptr(), strides_.data(), 0, true};
  }

  Keys keys(const Optional& key) {
    if (!key) return {};
    STD_TORCH_CHECK(key->is_cpu(), function_, ": expected a key on the CPU");
    keys_ = read_keys(function_, *key);
    const bool per_sample = key->dim() == 2;
    STD_TORCH_CHECK(!per_sample || static_cast<int64_t>(keys_.size()) == shape_.samples, function_,
                    ": expected one key, or one a sample");
    return {keys_.data(), per_sample};
  }

  static std::vector<Key> read_keys(const char* function, const Tensor& key) {
    const ScalarType dtype = key.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::UInt64 || dtype == ScalarType::Long, function,
                    ": expected a uint64 or int64 key");
    STD_TORCH_CHECK((key.dim() == 1 || key.dim() == 2) && key.size(key.dim() - 1) == 2, function,
                    ": expected a key of shape (2,) or (B, 2)");
    const auto* words = static_cast<const uint64_t*>(key.data_ptr());
    const int64_t word = key.stride(key.dim() - 1);
    std::vector<Key> keys(static_cast<size_t>(key.dim() == 2 ? key.size(0) : 1));
    for (size_t i = 0; i < keys.size(); ++i) {
      const uint64_t* at = words + (key.dim() == 2 ? static_cast<int64_t>(i) * key.stride(0) : 0);
      keys[i] = {at[0], at[word]};
    }
    return keys;
  }

 private:
  void check(const Tensor& x, ScalarType dtype) const {
    STD_TORCH_CHECK(x.is_cpu(), function_, ": expected tensors on the CPU");
    STD_TORCH_CHECK(x.scalar_type() == dtype, function_, ": expected tensors of one dtype");
  }

  const char* function_;
  const Tensor& like_;
  Shape shape_;
  std::vector<int64_t> strides_;
  std::vector<Key> keys_;
};

// Scratch for partial sums that lives as long as the call.
std::vector<double> partials(Call& call, const Tensor& like) {
  if (call.reduction == Reduction::kNone) return {};
  const Cut cut(like.numel(), samples(like), call.reduction);
  std::vector<double> scratch(static_cast<size_t>(cut.partials()));
  call.partials = scratch.data();
  return scratch;
}

void require_one_source(const char* function, const Optional& key, const Optional& noise) {
  STD_TORCH_CHECK(key.has_value() != noise.has_value(), function,
                  ": expected exactly one of key and noise");
}

// ---- random

Tensor numbers(const char* function, const Tensor& key, const std::vector<int64_t>& shape,
               ScalarType dtype, bool normal) {
  const std::vector<Key> keys = Arguments::read_keys(function, key);
  const bool per_sample = key.dim() == 2;
  STD_TORCH_CHECK(key.is_cpu(), function, ": expected a key on the CPU");
  STD_TORCH_CHECK(!per_sample || (!shape.empty() && shape[0] == key.size(0)), function,
                  ": expected the first size to be the number of keys");
  Numbers call;
  call.type = type_of(dtype);
  const Tensor out = new_tensor(key, shape, dtype);
  call.samples = per_sample ? shape[0] : 1;
  call.length = call.samples ? out.numel() / call.samples : 0;
  call.keys = {keys.data(), per_sample};
  call.out = out.data_ptr();
  call.normal = normal;
  call.parallel = parallel;
  if (out.numel()) kernels().numbers(call);
  return out;
}

Tensor normal(const Tensor& key, std::vector<int64_t> shape, ScalarType dtype) {
  return numbers("normal", key, shape, dtype, true);
}

Tensor uniform(const Tensor& key, std::vector<int64_t> shape, ScalarType dtype) {
  return numbers("uniform", key, shape, dtype, false);
}

void write_key(Key key, uint64_t* out) {
  out[0] = key.seed;
  out[1] = key.offset;
}

Tensor split(const Tensor& key, int64_t num) {
  const std::vector<Key> keys = Arguments::read_keys("split", key);
  std::vector<int64_t> shape{num};
  if (key.dim() == 2) shape.push_back(key.size(0));
  shape.push_back(2);
  const Tensor out = torch::stable::new_empty(key, shape);
  auto* words = static_cast<uint64_t*>(out.data_ptr());
  for (int64_t i = 0; i < num; ++i) {
    for (const Key& parent : keys) {
      write_key(fold_in(parent, static_cast<uint64_t>(i)), words);
      words += 2;
    }
  }
  return out;
}

Tensor fold_in_tensor(const Tensor& key, const Tensor& data) {
  const std::vector<Key> keys = Arguments::read_keys("fold_in", key);
  const bool per_item = data.dim() == 1;
  const int64_t n = key.dim() == 2 ? key.size(0) : per_item ? data.size(0) : 1;
  STD_TORCH_CHECK(data.is_cpu() && data.scalar_type() == ScalarType::Long && data.dim() <= 1 &&
                      (!per_item || data.size(0) == n),
                  "fold_in: expected int64 data of shape () or (B,)");
  std::vector<int64_t> shape{2};
  if (key.dim() == 2 || per_item) shape.insert(shape.begin(), n);
  const Tensor out = torch::stable::new_empty(key, shape);
  auto* words = static_cast<uint64_t*>(out.data_ptr());
  const auto* items = static_cast<const int64_t*>(data.data_ptr());
  const int64_t stride = per_item ? data.stride(0) : 0;
  for (int64_t i = 0; i < n; ++i) {
    const Key& parent = keys[static_cast<size_t>(key.dim() == 2 ? i : 0)];
    write_key(fold_in(parent, static_cast<uint64_t>(items[i * stride])), words + 2 * i);
  }
  return out;
}

// ---- vae

struct PosteriorOptions {
  double prior_mu_value = 0.0, prior_logvar_value = 0.0, free_bits = 0.0;
  double logvar_min, logvar_max;
  Reduction reduction = Reduction::kNone;
};

Posterior posterior_call(Arguments& arguments, const Tensor& mu, const Tensor& logvar,
                         const Optional& prior_mu, const Optional& prior_logvar,
                         const Optional& key, const Optional& noise, std::optional<int64_t> draws,
                         const PosteriorOptions& options) {
  Posterior call{};
  call.type = arguments.type();
  call.shape = arguments.shape();
  call.reduction = options.reduction;
  call.parallel = parallel;
  call.mu = arguments.view(mu);
  call.logvar = arguments.view(logvar);
  call.prior_mu = arguments.view(prior_mu);
  call.prior_logvar = arguments.view(prior_logvar);
  if (noise) call.noise = arguments.drawn(*noise, draws);
  call.keys = arguments.keys(key);
  call.draws = draws.value_or(1);
  call.prior_mu_value = options.prior_mu_value;
  call.prior_logvar_value = options.prior_logvar_value;
  call.free_bits = options.free_bits;
  call.logvar_min = options.logvar_min;
  call.logvar_max = options.logvar_max;
  return call;
}

Tensor rsample(const Tensor& mu, const Tensor& logvar, const Optional& key, const Optional& noise,
               std::optional<int64_t> num_samples, double logvar_min, double logvar_max) {
  require_one_source("rsample", key, noise);
  Arguments arguments("rsample", mu);
  PosteriorOptions options;
  options.logvar_min = logvar_min;
  options.logvar_max = logvar_max;
  Posterior call =
      posterior_call(arguments, mu, logvar, {}, {}, key, noise, num_samples, options);
  std::vector<int64_t> shape(mu.sizes().begin(), mu.sizes().end());
  if (num_samples) shape.insert(shape.begin(), *num_samples);
  const Tensor z = num_samples ? new_tensor(mu, shape, mu.scalar_type()) : new_like(mu);
  call.z = arguments.drawn(z, num_samples);
  if (z.numel()) kernels().posterior(call);
  return z;
}

// A result that is a value an element or reduced.
Tensor result(Arguments& arguments, const Tensor& like, Call& call, View& view) {
  const bool whole = call.reduction == Reduction::kNone;
  const Tensor out = whole ? new_like(like) : reduced(like, call.reduction);
  view = whole ? arguments.view(out) : View{out.data_ptr()};
  return out;
}

Tensor kl(const Tensor& mu, const Tensor& logvar, const Optional& prior_mu,
          const Optional& prior_logvar, double prior_mu_value, double prior_logvar_value,
          double free_bits, double logvar_min, double logvar_max, int64_t reduction) {
  Arguments arguments("kl", mu);
  Posterior call = posterior_call(arguments, mu, logvar, prior_mu, prior_logvar, {}, {}, {},
                                  {prior_mu_value, prior_logvar_value, free_bits, logvar_min,
                                   logvar_max, static_cast<Reduction>(reduction)});
  const Tensor out = result(arguments, mu, call, call.kl);
  const auto scratch = partials(call, mu);
  if (out.numel()) kernels().posterior(call);
  return out;
}

std::tuple<Tensor, Tensor> rsample_kl(const Tensor& mu, const Tensor& logvar,
                                      const Optional& prior_mu, const Optional& prior_logvar,
                                      const Optional& key, const Optional& noise,
                                      double prior_mu_value, double prior_logvar_value,
                                      double free_bits, double logvar_min, double logvar_max,
                                      int64_t reduction) {
  require_one_source("rsample_kl", key, noise);
  Arguments arguments("rsample_kl", mu);
  Posterior call = posterior_call(arguments, mu, logvar, prior_mu, prior_logvar, key, noise, {},
                                  {prior_mu_value, prior_logvar_value, free_bits, logvar_min,
                                   logvar_max, static_cast<Reduction>(reduction)});
  const Tensor z = new_like(mu);
  call.z = arguments.view(z);
  const Tensor out = result(arguments, mu, call, call.kl);
  const auto scratch = partials(call, mu);
  if (out.numel()) kernels().posterior(call);
  return {z, out};
}

// The gradient of `like` if output_mask asks for it, else an empty tensor. Zeros if no upstream
// gradient reaches it: kernels then leave it alone.
Tensor gradient(const Optional& like, const Tensor& dtype_of, int64_t output_mask, int bit,
                bool reached = true) {
  if (!like || !(output_mask >> bit & 1))
    return torch::stable::new_empty(dtype_of, std::vector<int64_t>{0});
  Tensor out = new_like(*like);
  if (!reached) torch::stable::zero_(out);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rsample_kl_backward(
    const Optional& grad_z, const Optional& grad_kl, const Tensor& mu, const Tensor& logvar,
    const Optional& prior_mu, const Optional& prior_logvar, const Optional& key,
    const Optional& noise, std::optional<int64_t> num_samples, double prior_mu_value,
    double prior_logvar_value, double free_bits, double logvar_min, double logvar_max,
    int64_t reduction, int64_t output_mask) {
  const char* const function = "rsample_kl_backward";
  if (grad_z) require_one_source(function, key, noise);
  STD_TORCH_CHECK(grad_z || grad_kl, function, ": expected grad_z or grad_kl");
  Arguments arguments(function, mu);
  Posterior call = posterior_call(
      arguments, mu, logvar, prior_mu, prior_logvar, key, noise, num_samples,
      {prior_mu_value, prior_logvar_value, free_bits, logvar_min, logvar_max,
       static_cast<Reduction>(reduction)});
  if (grad_z) call.grad_z = arguments.drawn(*grad_z, num_samples);
  if (grad_kl) call.grad_kl = arguments.upstream(*grad_kl, call.reduction);
  const Tensor grad_mu = gradient(mu, mu, output_mask, 0);
  const Tensor grad_logvar = gradient(logvar, mu, output_mask, 1);
  const Tensor grad_prior_mu = gradient(prior_mu, mu, output_mask, 2, grad_kl.has_value());
  const Tensor grad_prior_logvar =
      gradient(prior_logvar, mu, output_mask, 3, grad_kl.has_value());
  const Tensor grad_noise = gradient(noise, mu, output_mask, 4, grad_z.has_value());
  if (output_mask & 1) call.grad_mu = arguments.view(grad_mu);
  if (output_mask & 2) call.grad_logvar = arguments.view(grad_logvar);
  if (grad_kl && prior_mu && output_mask & 4) call.grad_prior_mu = arguments.view(grad_prior_mu);
  if (grad_kl && prior_logvar && output_mask & 8)
    call.grad_prior_logvar = arguments.view(grad_prior_logvar);
  if (grad_z && noise && output_mask & 16) call.grad_noise = arguments.drawn(grad_noise, num_samples);
  if (mu.numel()) kernels().posterior_backward(call);
  return {grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, grad_noise};
}

Likelihood likelihood_call(Arguments& arguments, const Tensor& x_hat, const Tensor& x,
                           const Optional& logvar, double sigma, double logvar_min,
                           double logvar_max, int64_t reduction) {
  Likelihood call{};
  call.type = arguments.type();
  call.shape = arguments.shape();
  call.reduction = static_cast<Reduction>(reduction);
  call.parallel = parallel;
  call.x_hat = arguments.view(x_hat);
  call.x = arguments.view(x);
  call.logvar = arguments.view(logvar);
  call.sigma = sigma;
  call.logvar_min = logvar_min;
  call.logvar_max = logvar_max;
  return call;
}

Tensor bernoulli_nll(const Tensor& logits, const Tensor& x, int64_t reduction) {
  Arguments arguments("bernoulli_nll", logits);
  Likelihood call = likelihood_call(arguments, logits, x, {}, 1.0, 0.0, 0.0, reduction);
  const Tensor out = result(arguments, logits, call, call.nll);
  const auto scratch = partials(call, logits);
  if (out.numel()) kernels().bernoulli(call);
  return out;
}

std::tuple<Tensor, Tensor> bernoulli_nll_backward(const Tensor& grad, const Tensor& logits,
                                                  const Tensor& x, int64_t reduction,
                                                  int64_t output_mask) {
  Arguments arguments("bernoulli_nll_backward", logits);
  Likelihood call = likelihood_call(arguments, logits, x, {}, 1.0, 0.0, 0.0, reduction);
  call.grad = arguments.upstream(grad, call.reduction);
  const Tensor grad_logits = gradient(logits, logits, output_mask, 0);
  const Tensor grad_x = gradient(x, logits, output_mask, 1);
  if (output_mask & 1) call.grad_x_hat = arguments.view(grad_logits);
  if (output_mask & 2) call.grad_x = arguments.view(grad_x);
  if (logits.numel()) kernels().bernoulli_backward(call);
  return {grad_logits, grad_x};
}

Tensor gaussian_nll(const Tensor& x_hat, const Tensor& x, const Optional& logvar, double sigma,
                    double logvar_min, double logvar_max, int64_t reduction) {
  Arguments arguments("gaussian_nll", x_hat);
  Likelihood call =
      likelihood_call(arguments, x_hat, x, logvar, sigma, logvar_min, logvar_max, reduction);
  const Tensor out = result(arguments, x_hat, call, call.nll);
  const auto scratch = partials(call, x_hat);
  if (out.numel()) kernels().gaussian(call);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gaussian_nll_backward(
    const Tensor& grad, const Tensor& x_hat, const Tensor& x, const Optional& logvar, double sigma,
    double logvar_min, double logvar_max, int64_t reduction, int64_t output_mask) {
  Arguments arguments("gaussian_nll_backward", x_hat);
  Likelihood call =
      likelihood_call(arguments, x_hat, x, logvar, sigma, logvar_min, logvar_max, reduction);
  call.grad = arguments.upstream(grad, call.reduction);
  const Tensor grad_x_hat = gradient(x_hat, x_hat, output_mask, 0);
  const Tensor grad_x = gradient(x, x_hat, output_mask, 1);
  const Tensor grad_logvar = gradient(logvar, x_hat, output_mask, 2);
  if (output_mask & 1) call.grad_x_hat = arguments.view(grad_x_hat);
  if (output_mask & 2) call.grad_x = arguments.view(grad_x);
  if (logvar && output_mask & 4) call.grad_logvar = arguments.view(grad_logvar);
  if (x_hat.numel()) kernels().gaussian_backward(call);
  return {grad_x_hat, grad_x, grad_logvar};
}

int64_t capability_code() { return static_cast<int64_t>(capability()); }

}  // namespace
}  // namespace genkern

STABLE_TORCH_LIBRARY(_genkern_cpu, m) {
  for (const char* schema : genkern::kSchemas) m.def(schema);
  m.def("capability() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(_genkern_cpu, CPU, m) {
  m.impl("normal", TORCH_BOX(&genkern::normal));
  m.impl("uniform", TORCH_BOX(&genkern::uniform));
  m.impl("split", TORCH_BOX(&genkern::split));
  m.impl("fold_in", TORCH_BOX(&genkern::fold_in_tensor));
  m.impl("rsample", TORCH_BOX(&genkern::rsample));
  m.impl("kl", TORCH_BOX(&genkern::kl));
  m.impl("rsample_kl", TORCH_BOX(&genkern::rsample_kl));
  m.impl("rsample_kl_backward", TORCH_BOX(&genkern::rsample_kl_backward));
  m.impl("bernoulli_nll", TORCH_BOX(&genkern::bernoulli_nll));
  m.impl("bernoulli_nll_backward", TORCH_BOX(&genkern::bernoulli_nll_backward));
  m.impl("gaussian_nll", TORCH_BOX(&genkern::gaussian_nll));
  m.impl("gaussian_nll_backward", TORCH_BOX(&genkern::gaussian_nll_backward));
}

STABLE_TORCH_LIBRARY_IMPL(_genkern_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&genkern::capability_code));
}
