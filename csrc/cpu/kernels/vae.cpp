// The VAE family, for one instruction set: GENKERN_CAPABILITY is its namespace.
#include "genkern/vae.h"

#include <cmath>
#include <type_traits>

#include "cpu/driver.h"

namespace genkern::GENKERN_CAPABILITY {
namespace {

// ---- the posterior

// Numbers of a call. A loop gets a copy: what it writes might otherwise be the call itself, which
// would be read again in every step.
template <class T>
struct PosteriorNumbers {
  explicit PosteriorNumbers(const Posterior& call)
      : clamp{static_cast<T>(call.logvar_min), static_cast<T>(call.logvar_max)},
        free_bits(static_cast<T>(call.free_bits)) {}
  template <class N>
  explicit GENKERN_HD PosteriorNumbers(const PosteriorNumbers<N>& c)
      : clamp{T(c.clamp.min), T(c.clamp.max)}, free_bits(T(c.free_bits)) {}
  LogvarClamp<T> clamp;
  T free_bits;
};

// Sets sigma = e^(l/2) as well.
template <class T, bool kPrior>
GENKERN_HD Kl<T> divergence(T mu, T l, [[maybe_unused]] T m2, [[maybe_unused]] T lv2, T& sigma) {
  if constexpr (kPrior) {
    sigma = standard_deviation(l);
    return kl_prior(mu, l, m2, lv2);
  } else {
    const RootExpm1<T> g = root_expm1(l);
    sigma = g.root;
    return kl_standard(mu, g.expm1);
  }
}

// kPlain, here and in the backward pass: logvar has no bounds and the KL no floor, whose
// comparisons would take a sixth of the time. Types P, E and O may be 16-bit numbers.
template <class T, bool kPrior, bool kDraw, bool kKl, bool kPlain, class P, class E, class O>
void posterior_loop(const Posterior& call, int64_t n, const P* __restrict mu,
                    const P* __restrict logvar, const T* __restrict m2, const T* __restrict lv2,
                    const E* __restrict eps, O* __restrict z, T* __restrict kl) {
  const PosteriorNumbers<T> numbers(call);
  constexpr int kChains = kKl && !kPrior ? kManyVectors : kVectors;
  for_steps<T, kChains>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const PosteriorNumbers<V> c(numbers);
    const V m = load_vector<V>(mu + i);
    const V raw = load_vector<V>(logvar + i);
    const V l = kPlain ? raw : c.clamp(raw);
    V sigma;
    if constexpr (kKl) {
      const V value = divergence<V, kPrior>(m, l, load_vector<V>(m2 + (kPrior ? i : 0)),
                                            load_vector<V>(lv2 + (kPrior ? i : 0)), sigma)
                          .value;
      store_vector(kl + i, kPlain ? value : with_free_bits(value, c.free_bits));
    } else {
      sigma = standard_deviation(l);
    }
    if constexpr (kDraw) {
      store_vector(z + i, reparameterise(m, sigma, load_vector<V>(eps + i)));
    }
  });
}

// A floor of 0 is none: root_expm1's sums are of squares near 0, and far from it above 0.1.
bool is_plain(const Posterior& call) {
  return call.free_bits <= 0.0 && call.logvar_min == -INFINITY && call.logvar_max == INFINITY;
}

// Tensors of a posterior call. What is written comes last.
enum PosteriorTensor {
  kMu,
  kLogvar,
  kPriorMu,
  kPriorLogvar,
  kNoise,
  kGradZ,
  kGradKl,
  kZ,
  kKlValue,
  kGradMu,  // in the order of their tensors
  kGradLogvar,
  kGradPriorMu,
  kGradPriorLogvar,
  kGradNoise,
  kPosteriorTensors
};

template <class S>
Tensors<S, kPosteriorTensors> posterior_tensors(const Posterior& call) {
  return {call,
          {&call.mu, &call.logvar, &call.prior_mu, &call.prior_logvar, &call.noise, &call.grad_z,
           &call.grad_kl, &call.z, &call.kl, &call.grad_mu, &call.grad_logvar, &call.grad_prior_mu,
           &call.grad_prior_logvar, &call.grad_noise},
          // Noise from a key numbers the elements in their logical order.
          call.keys.data == nullptr,
          kZ};
}

template <class T>
void fill_constant(T value, T* out) {
  for (int64_t i = 0; i < kChunk; ++i) out[i] = value;
}

template <class S, bool kPrior, bool kDraw, bool kKl>
void posterior_typed(const Posterior& call) {
  using T = typename Arithmetic<S>::T;
  const auto a = posterior_tensors<S>(call);
  const int64_t size = total(call.shape);
  const Cut cut(size, call.shape.samples, kKl ? call.reduction : Reduction::kNone);
  const bool reduce = kKl && call.reduction != Reduction::kNone;
  const bool plain = is_plain(call);
  for_units(call, cut, call.keys.data ? kNoiseGrain : kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) T mu_[kChunk], logvar_[kChunk], eps_[kChunk], z_[kChunk], kl_[kChunk];
    alignas(64) S rounded[kChunk];
    alignas(64) T m2_[kPrior ? kChunk : Step<T, kManyVectors>::kWidth],
        lv2_[kPrior ? kChunk : Step<T, kManyVectors>::kWidth];
    if constexpr (kPrior) {
      fill_constant(static_cast<T>(call.prior_mu_value), m2_);
      fill_constant(static_cast<T>(call.prior_logvar_value), lv2_);
    }
    for (int64_t index = begin; index < end; ++index) {
      const Unit unit(cut, index);
      const int64_t start = unit.start, n = unit.n;
      T* kl = kl_;
      if constexpr (kKl) kl = reduce ? kl_ : a[kKlValue].target(start, n, kl_);
      const auto noise = [&](int64_t draw) -> const T* {
        if (!call.keys.data) return a[kNoise].read(start, n, eps_, draw);
        Ahead ahead;
        a[kMu].soon(start, n, ahead);
        a[kLogvar].soon(start, n, ahead);
        fill_noise(call.keys, call.shape.samples, size, draw, start, n, eps_, ahead);
        return eps_;
      };
      if (!kPrior && plain && call.draws == 1 && in_rows(a, unit, {kMu, kLogvar, kNoise, kZ})) {
        const S *mu = a[kMu].row(start, n), *logvar = a[kLogvar].row(start, n);
        S* z = kDraw ? a[kZ].row_target(start, n, rounded) : rounded;
        if (kDraw && call.keys.data) {
          posterior_loop<T, false, kDraw, kKl, true>(call, n, mu, logvar, m2_, lv2_, noise(0), z,
                                                     kl);
        } else {
          const S* eps = kDraw ? a[kNoise].row(start, n) : rounded;
          posterior_loop<T, false, kDraw, kKl, true>(call, n, mu, logvar, m2_, lv2_, eps, z, kl);
        }
        if (kDraw) a[kZ].write_row(start, n, rounded);
      } else {
        const T* mu = a[kMu].read(start, n, mu_);
        const T* logvar = a[kLogvar].read(start, n, logvar_);
        const T* m2 = a[kPriorMu] ? a[kPriorMu].read(start, n, m2_) : m2_;
        const T* lv2 = a[kPriorLogvar] ? a[kPriorLogvar].read(start, n, lv2_) : lv2_;
        for (int64_t draw = 0; draw < call.draws; ++draw) {
          const T* eps = kDraw ? noise(draw) : eps_;
          const auto loop = [&](auto* z) {
            plain ? posterior_loop<T, kPrior, kDraw, kKl, true>(call, n, mu, logvar, m2, lv2, eps,
                                                                z, kl)
                  : posterior_loop<T, kPrior, kDraw, kKl, false>(call, n, mu, logvar, m2, lv2, eps,
                                                                 z, kl);
          };
          if constexpr (kDraw) {
            put(a[kZ], unit, z_, loop, draw);
          } else {
            loop(z_);
          }
        }
      }
      if constexpr (kKl) {
        if (reduce) {
          partial_sums(cut, unit, kl, call.partials);
        } else {
          a[kKlValue].write(start, n, kl, kl_);
        }
      }
    }
  });
  if (reduce) finish(call, cut, static_cast<T*>(call.kl.data));
}

// Calls f with kPrior, kDraw and kKl as constants, of the combinations that occur.
template <class F>
void posterior_variants(bool prior, bool z, bool kl, const F& f) {
  using std::false_type;
  using std::true_type;
  if (!kl) return f(false_type(), true_type(), false_type());
  if (z)
    return prior ? f(true_type(), true_type(), true_type())
                 : f(false_type(), true_type(), true_type());
  return prior ? f(true_type(), false_type(), true_type())
               : f(false_type(), false_type(), true_type());
}

bool has_prior(const Posterior& call) {
  return call.prior_mu.data || call.prior_logvar.data || call.prior_mu_value != 0.0 ||
         call.prior_logvar_value != 0.0;
}

void posterior(const Posterior& call) {
  if (empty(call, call.kl.data)) return;
  visit(call.type, [&](auto storage) {
    posterior_variants(has_prior(call), call.z.data, call.kl.data,
                       [&](auto prior, auto z, auto kl) {
                         posterior_typed<decltype(storage), decltype(prior)::value,
                                         decltype(z)::value, decltype(kl)::value>(call);
                       });
  });
}

// `along_eps` is the upstream gradient of z times the noise, or null where it is gz * eps: one
// draw.
template <class T, bool kPrior, bool kDraw, bool kKl, bool kPlain, class P, class E, class O>
void posterior_backward_loop(const Posterior& call, double kl_scale, int64_t n,
                             const P* __restrict mu, const P* __restrict logvar,
                             const T* __restrict m2, const T* __restrict lv2,
                             const P* __restrict gz, const E* __restrict eps,
                             const T* __restrict along_eps, const T* __restrict gkl,
                             O* __restrict grad_mu, O* __restrict grad_logvar,
                             T* __restrict grad_m2, T* __restrict grad_lv2) {
  const PosteriorNumbers<T> numbers(call);
  const T scale = static_cast<T>(kl_scale);
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    const PosteriorNumbers<V> c(numbers);
    const V raw = load_vector<V>(logvar + i);
    const V l = kPlain ? raw : c.clamp(raw);
    Kl<V> d;
    V sigma;
    if constexpr (kKl) {
      d = divergence<V, kPrior>(load_vector<V>(mu + i), l, load_vector<V>(m2 + (kPrior ? i : 0)),
                                load_vector<V>(lv2 + (kPrior ? i : 0)), sigma);
    } else {
      sigma = standard_deviation(l);
    }
    V along_mu = V(0.0f), along_logvar = V(0.0f);
    if constexpr (kDraw) {
      along_mu = load_vector<V>(gz + i);
      const V product =
          along_eps ? load_vector<V>(along_eps + i) : along_mu * load_vector<V>(eps + i);
      along_logvar = V(0.5f) * sigma * product;
    }
    if constexpr (kKl) {
      V g = load_vector<V>(gkl + i) * V(scale);
      if constexpr (!kPlain) g = free_bits_gradient(d.value, c.free_bits, g);
      along_mu = madd(g, d.mu, along_mu);
      along_logvar = madd(g, d.logvar, along_logvar);
      if constexpr (kPrior) {
        store_vector(grad_m2 + i, -g * d.mu);
        store_vector(grad_lv2 + i, g * d.prior_logvar);
      }
    }
    store_vector(grad_mu + i, along_mu);
    if constexpr (!kPlain) along_logvar = c.clamp.gradient(raw, along_logvar);
    store_vector(grad_logvar + i, along_logvar);
  });
}

// The gradient of explicit noise: that of z times sigma.
template <class S, class T>
void noise_gradient(const Posterior& call, const Tensors<S, kPosteriorTensors>& a, int64_t start,
                    int64_t n, const T* logvar) {
  alignas(64) T gz_[kChunk], out_[kChunk];
  const PosteriorNumbers<T> c(call);
  for (int64_t draw = 0; draw < call.draws; ++draw) {
    const T* gz = a[kGradZ].read(start, n, gz_, draw);
    T* out = a[kGradNoise].target(start, n, out_, draw);
    for (int64_t i = 0; i < n; ++i) out[i] = gz[i] * standard_deviation(c.clamp(logvar[i]));
    a[kGradNoise].write(start, n, out, out_, draw);
  }
}

// The sums over `draws` of the upstream gradient and of it times the noise.
template <class T>
void add_draw(int64_t n, bool first, const T* __restrict gz, const T* __restrict eps,
              T* __restrict sum, T* __restrict along_eps) {
  if (first) {
    for (int64_t i = 0; i < n; ++i) sum[i] = gz[i], along_eps[i] = gz[i] * eps[i];
  } else {
    for (int64_t i = 0; i < n; ++i) {
      sum[i] += gz[i];
      along_eps[i] = madd(gz[i], eps[i], along_eps[i]);
    }
  }
}

template <class S, bool kPrior, bool kDraw, bool kKl>
void posterior_backward_typed(const Posterior& call) {
  using T = typename Arithmetic<S>::T;
  const auto a = posterior_tensors<S>(call);
  const int64_t size = total(call.shape);
  const Cut cut(size, 1, Reduction::kNone);
  const double kl_scale = 1.0 / divisor(call);
  // Without a gradient of logvar no noise is needed.
  const bool draws = call.grad_logvar.data != nullptr;
  const bool plain = is_plain(call);
  const bool rows =
      plain && !kPrior && draws && call.draws == 1 && call.grad_mu.data && !call.grad_noise.data;
  for_units(
      call, cut, draws && call.keys.data ? kNoiseGrain : kGrain, [&](int64_t begin, int64_t end) {
        alignas(64) T mu_[kChunk], logvar_[kChunk], eps_[kChunk], gz_[kChunk], gkl_[kChunk];
        alignas(64) T sum[kChunk], along[kChunk];
        alignas(64) T m2_[kPrior ? kChunk : Step<T, kManyVectors>::kWidth],
            lv2_[kPrior ? kChunk : Step<T, kManyVectors>::kWidth];
        alignas(64) T out_[4][kChunk];
        alignas(64) S rounded[2][kChunk];
        if constexpr (kPrior) {
          fill_constant(static_cast<T>(call.prior_mu_value), m2_);
          fill_constant(static_cast<T>(call.prior_logvar_value), lv2_);
        }
        if (!draws) fill_constant(T(0), eps_);
        if (call.draws == 0) {
          fill_constant(T(0), sum);
          fill_constant(T(0), along);
        }
        for (int64_t index = begin; index < end; ++index) {
          const Unit unit(cut, index);
          const int64_t start = unit.start, n = unit.n;
          const T* gkl = kKl ? a[kGradKl].read(start, n, gkl_) : gkl_;
          const auto noise = [&](int64_t draw) -> const T* {
            if (!draws) return eps_;
            if (!call.keys.data) return a[kNoise].read(start, n, eps_, draw);
            Ahead ahead;
            if (kKl) a[kMu].soon(start, n, ahead);
            a[kLogvar].soon(start, n, ahead);
            a[kGradZ].soon(start, n, ahead, draw);
            fill_noise(call.keys, call.shape.samples, size, draw, start, n, eps_, ahead);
            return eps_;
          };
          if (rows && in_rows(a, unit, {kMu, kLogvar, kNoise, kGradZ, kGradMu, kGradLogvar})) {
            const auto row = [&](int k) -> const S* { return a[k] ? a[k].row(start, n) : nullptr; };
            S* out[2];
            for (int v = 0; v < 2; ++v) {
              out[v] = a[kGradMu + v].row_target(start, n, rounded[v]);
            }
            const auto loop = [&](const auto* eps) {
              posterior_backward_loop<T, false, kDraw, kKl, true>(
                  call, kl_scale, n, row(kMu), row(kLogvar), m2_, lv2_, row(kGradZ), eps, nullptr,
                  gkl, out[0], out[1], out_[2], out_[3]);
            };
            kDraw&& call.keys.data ? loop(noise(0)) : loop(row(kNoise));
            for (int v = 0; v < 2; ++v) a[kGradMu + v].write_row(start, n, rounded[v]);
            continue;
          }
          const T* mu = a[kMu].read(start, n, mu_);
          const T* logvar = a[kLogvar].read(start, n, logvar_);
          const T* m2 = a[kPriorMu] ? a[kPriorMu].read(start, n, m2_) : m2_;
          const T* lv2 = a[kPriorLogvar] ? a[kPriorLogvar].read(start, n, lv2_) : lv2_;
          const T* gz = gz_;
          const T* eps = eps_;
          if constexpr (kDraw) {
            for (int64_t draw = 0; draw < call.draws; ++draw) {
              gz = a[kGradZ].read(start, n, gz_, draw);
              eps = noise(draw);
              if (call.draws > 1) add_draw(n, draw == 0, gz, eps, sum, along);
            }
            if (call.draws != 1) gz = sum;
          }
          T* out[4];
          for (int v = 0; v < 4; ++v) {
            out[v] = a[kGradMu + v] ? a[kGradMu + v].target(start, n, out_[v]) : out_[v];
          }
          const T* along_eps = call.draws == 1 ? nullptr : along;
          const auto loop = [&](auto* grad_mu, auto* grad_logvar) {
            plain ? posterior_backward_loop<T, kPrior, kDraw, kKl, true>(
                        call, kl_scale, n, mu, logvar, m2, lv2, gz, eps, along_eps, gkl, grad_mu,
                        grad_logvar, out[2], out[3])
                  : posterior_backward_loop<T, kPrior, kDraw, kKl, false>(
                        call, kl_scale, n, mu, logvar, m2, lv2, gz, eps, along_eps, gkl, grad_mu,
                        grad_logvar, out[2], out[3]);
          };
          Streamed* const grad_mu = lines(a[kGradMu], unit);
          Streamed* const grad_logvar = lines(a[kGradLogvar], unit);
          const bool streamed = grad_mu && grad_logvar;
          if constexpr (std::is_same_v<S, float>) {
            if (streamed) loop(grad_mu, grad_logvar);
          }
          if (!streamed) loop(out[0], out[1]);
          for (int v = streamed ? 2 : 0; v < 4; ++v) {
            if (a[kGradMu + v]) a[kGradMu + v].write(start, n, out[v], out_[v]);
          }
          if (kDraw && a[kGradNoise]) noise_gradient(call, a, start, n, logvar);
        }
      });
}

void posterior_backward(const Posterior& call) {
  visit(call.type, [&](auto storage) {
    posterior_variants(has_prior(call), call.grad_z.data, call.grad_kl.data,
                       [&](auto prior, auto z, auto kl) {
                         posterior_backward_typed<decltype(storage), decltype(prior)::value,
                                                  decltype(z)::value, decltype(kl)::value>(call);
                       });
  });
}

// ---- the decoders' likelihoods

struct Bernoulli {
  static constexpr bool kLearned = false;
  template <class T>
  struct Constants {
    explicit Constants(const Likelihood&) {}
  };
  template <class T, class V>
  static GENKERN_HD V value(const Constants<T>&, V logit, V x, V) {
    return bernoulli_nll(logit, x).value;
  }
  template <class T, class V>
  static GENKERN_HD void gradients(const Constants<T>&, V logit, V x, V, V g, V& first, V& second,
                                   V&) {
    first = g * bernoulli_nll(logit, x).logit;
    second = -g * logit;
  }
};

struct FixedGaussian {
  static constexpr bool kLearned = false;
  template <class T>
  struct Constants {
    explicit Constants(const Likelihood& call)
        : inverse_sigma(static_cast<T>(1.0 / call.sigma)),
          half_log(static_cast<T>(std::log(call.sigma) + 0.5 * kLog2Pi)) {}
    T inverse_sigma, half_log;
  };
  template <class T, class V>
  static GENKERN_HD GaussianNll<V> at(const Constants<T>& c, V x_hat, V x) {
    return gaussian_nll(x_hat, x, V(c.inverse_sigma), V(c.half_log));
  }
  template <class T, class V>
  static GENKERN_HD V value(const Constants<T>& c, V x_hat, V x, V) {
    return at(c, x_hat, x).value;
  }
  template <class T, class V>
  static GENKERN_HD void gradients(const Constants<T>& c, V x_hat, V x, V, V g, V& first, V& second,
                                   V&) {
    second = g * at(c, x_hat, x).x;
    first = -second;
  }
};

struct LearnedGaussian {
  static constexpr bool kLearned = true;
  template <class T>
  struct Constants {
    explicit Constants(const Likelihood& call)
        : min(static_cast<T>(call.logvar_min)), max(static_cast<T>(call.logvar_max)) {}
    T min, max;
  };
  template <class T, class V>
  static GENKERN_HD V value(const Constants<T>& c, V x_hat, V x, V logvar) {
    return gaussian_nll(x_hat, x, clamp(logvar, V(c.min), V(c.max))).value;
  }
  template <class T, class V>
  static GENKERN_HD void gradients(const Constants<T>& c, V x_hat, V x, V logvar, V g, V& first,
                                   V& second, V& third) {
    const LogvarClamp<V> clamp{V(c.min), V(c.max)};
    const GaussianNll<V> d = gaussian_nll(x_hat, x, clamp(logvar));
    second = g * d.x;
    first = -second;
    third = clamp.gradient(logvar, g * d.logvar);
  }
};

enum LikelihoodTensor {
  kXHat,
  kX,
  kVariance,
  kGrad,
  kNll,
  kGradXHat,  // in the order of their tensors
  kGradX,
  kGradVariance,
  kLikelihoodTensors
};

template <class S>
Tensors<S, kLikelihoodTensors> likelihood_tensors(const Likelihood& call) {
  return {call,
          {&call.x_hat, &call.x, &call.logvar, &call.grad, &call.nll, &call.grad_x_hat,
           &call.grad_x, &call.grad_logvar},
          true,
          kNll};
}

// a, b and the gradients may be 16-bit numbers.
template <class Kind, class T, class P>
void value_loop(const Likelihood& call, int64_t n, const P* __restrict a, const P* __restrict b,
                const T* __restrict l, T* __restrict out) {
  const typename Kind::template Constants<T> c(call);
  constexpr int kChains = Kind::kLearned ? kVectors : kManyVectors;
  for_steps<T, kChains>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    store_vector(out + i, Kind::value(c, load_vector<V>(a + i), load_vector<V>(b + i),
                                      load_vector<V>(l + i)));
  });
}

template <class Kind, bool kOfX, class T, class P, class O>
void gradient_loop(const Likelihood& call, double scale, int64_t n, const P* __restrict a,
                   const P* __restrict b, const T* __restrict l, const T* __restrict g,
                   O* const (&out)[3]) {
  const typename Kind::template Constants<T> c(call);
  const T by = static_cast<T>(scale);
  O* __restrict const first = out[0], * __restrict const second = out[1], * __restrict const third = out[2];
  for_steps<T>(n, [=](auto number, int64_t i) __attribute__((always_inline)) {
    using V = typename decltype(number)::T;
    V x = V(0.0f), y = V(0.0f), z = V(0.0f);
    Kind::gradients(c, load_vector<V>(a + i), load_vector<V>(b + i), load_vector<V>(l + i),
                    load_vector<V>(g + i) * V(by), x, y, z);
    store_vector(first + i, x);
    if constexpr (kOfX) store_vector(second + i, y);
    if constexpr (Kind::kLearned) store_vector(third + i, z);
  });
}

template <class Kind>
void likelihood(const Likelihood& call) {
  if (empty(call, call.nll.data)) return;
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = likelihood_tensors<S>(call);
    const Cut cut(total(call.shape), call.shape.samples, call.reduction);
    const bool reduce = call.reduction != Reduction::kNone;
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      alignas(64) T x_hat_[kChunk], x_[kChunk], logvar_[kChunk], out_[kChunk];
      fill_constant(T(0), logvar_);
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        const int64_t start = unit.start, n = unit.n;
        const T* logvar = a[kVariance] ? a[kVariance].read(start, n, logvar_) : logvar_;
        T* out = reduce ? out_ : a[kNll].target(start, n, out_);
        if (in_rows(a, unit, {kXHat, kX})) {
          value_loop<Kind>(call, n, a[kXHat].row(start, n), a[kX].row(start, n), logvar, out);
        } else {
          const T* x_hat = a[kXHat].read(start, n, x_hat_);
          value_loop<Kind>(call, n, x_hat, a[kX].read(start, n, x_), logvar, out);
        }
        if (reduce) {
          partial_sums(cut, unit, out, call.partials);
        } else {
          a[kNll].write(start, n, out, out_);
        }
      }
    });
    if (reduce) finish(call, cut, static_cast<T*>(call.nll.data));
  });
}

template <class Kind>
void likelihood_backward(const Likelihood& call) {
  visit(call.type, [&](auto storage) {
    using S = decltype(storage);
    using T = typename Arithmetic<S>::T;
    const auto a = likelihood_tensors<S>(call);
    const Cut cut(total(call.shape), 1, Reduction::kNone);
    const double factor = 1.0 / divisor(call);
    for_units(call, cut, kGrain, [&](int64_t begin, int64_t end) {
      alignas(64) T x_hat_[kChunk], x_[kChunk], logvar_[kChunk], grad_[kChunk], out_[3][kChunk];
      alignas(64) S rounded[3][kChunk];
      fill_constant(T(0), logvar_);
      for (int64_t index = begin; index < end; ++index) {
        const Unit unit(cut, index);
        const int64_t start = unit.start, n = unit.n;
        const T* logvar = a[kVariance] ? a[kVariance].read(start, n, logvar_) : logvar_;
        const T* grad = a[kGrad].read(start, n, grad_);
        const auto loop = [&](const auto* x_hat, const auto* x, const auto& out) {
          a[kGradX] ? gradient_loop<Kind, true>(call, factor, n, x_hat, x, logvar, grad, out)
                    : gradient_loop<Kind, false>(call, factor, n, x_hat, x, logvar, grad, out);
        };
        // What no one asks for goes to a buffer.
        if (in_rows(a, unit, {kXHat, kX, kGradXHat, kGradX, kGradVariance})) {
          S* out[3];
          for (int v = 0; v < 3; ++v) {
            const auto& gradient = a[kGradXHat + v];
            out[v] = gradient ? gradient.row_target(start, n, rounded[v]) : rounded[v];
          }
          loop(a[kXHat].row(start, n), a[kX].row(start, n), out);
          for (int v = 0; v < 3; ++v) {
            if (a[kGradXHat + v]) a[kGradXHat + v].write_row(start, n, rounded[v]);
          }
          continue;
        }
        T* out[3];
        for (int v = 0; v < 3; ++v) {
          const auto& gradient = a[kGradXHat + v];
          out[v] = gradient ? gradient.target(start, n, out_[v]) : out_[v];
        }
        loop(a[kXHat].read(start, n, x_hat_), a[kX].read(start, n, x_), out);
        for (int v = 0; v < 3; ++v) {
          if (a[kGradXHat + v]) a[kGradXHat + v].write(start, n, out[v], out_[v]);
        }
      }
    });
  });
}

void gaussian(const Likelihood& call) {
  call.logvar.data ? likelihood<LearnedGaussian>(call) : likelihood<FixedGaussian>(call);
}
void gaussian_backward(const Likelihood& call) {
  call.logvar.data ? likelihood_backward<LearnedGaussian>(call)
                   : likelihood_backward<FixedGaussian>(call);
}

}  // namespace

const VaeKernels& vae_kernels() {
  static const VaeKernels table = {
      posterior, posterior_backward, likelihood<Bernoulli>, likelihood_backward<Bernoulli>,
      gaussian,  gaussian_backward};
  return table;
}

}  // namespace genkern::GENKERN_CAPABILITY
