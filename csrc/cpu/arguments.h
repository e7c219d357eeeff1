// From torch's tensors to the kernels' views, and new tensors.
//
// Arguments come checked from Python; what is checked again here keeps a direct call of
// torch.ops.genkern.* from reading or writing outside a tensor.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <optional>
#include <vector>

#if defined(GENKERN_OWN_THREADS)
#include <thread>
#endif

#include "cpu/capability.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "cpu/ops.h"

namespace genkern {

// The kernels of this processor.
#define GENKERN_KERNELS(family) GENKERN_DISPATCH(family##_kernels())

inline void parallel(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t),
                     void* context) {
  if (n <= 0) return;
  if (n <= grain) return body(context, 0, n);
#if defined(GENKERN_OWN_THREADS)
  constexpr int64_t kThreads = 4;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([=] { body(context, n * i / kThreads, n * (i + 1) / kThreads); });
  }
  for (std::thread& thread : threads) thread.join();
#else
  torch::stable::parallel_for(0, n, grain,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
#endif
}

inline Type type_of(ScalarType dtype) {
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

inline ScalarType arithmetic(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Reduction reduction_of(const char* function, int64_t reduction) {
  STD_TORCH_CHECK(reduction >= 0 && reduction <= static_cast<int64_t>(Reduction::kSample), function,
                  ": expected a reduction from 0 to 4, got ", reduction);
  return static_cast<Reduction>(reduction);
}

// Raises unless x's elements lie in its memory: a storage can be freed or shrunk under its tensors,
// as FSDP does, and a buffer of bytes can start anywhere.
inline void check_memory(const char* function, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), function, ": expected tensors on the CPU");
  if (x.numel() == 0) return;
  const int64_t size = static_cast<int64_t>(x.element_size());
  int64_t last, bytes;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(x.get(), &last));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &bytes));
  for (int64_t d = 0; d < x.dim(); ++d) last += (x.size(d) - 1) * x.stride(d);
  STD_TORCH_CHECK(last < bytes / size, function, ": a tensor reaches beyond its storage of ", bytes,
                  " bytes: was the storage freed or resized?");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(x.data_ptr()) % static_cast<uintptr_t>(size) == 0,
                  function,
                  ": a tensor's memory is not aligned to its elements; clone() aligns it");
}

inline int64_t samples(const Tensor& x) { return x.dim() ? x.size(0) : 1; }

// Pages of 2 MB for a large new tensor: without, the first write to each 4 KB is a page fault,
// which can cost more than the kernel. Takes effect where the system leaves the choice to programs.
inline Tensor with_large_pages(Tensor x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x.data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(x.numel()) * x.element_size();
  const uintptr_t first = (begin + kPage - 1) & ~(kPage - 1), last = end & ~(kPage - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return x;
}

// Of PyTorch 2.11; null before.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* out, int32_t layout,
    const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context), void* context);

// A dense tensor. torch::stable's factories look an operator up by name in each call; this one does
// not.
inline Tensor empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                            int32_t dtype) {
  AtenTensorHandle handle;
  const int32_t cpu = aoti_torch_device_type_cpu();
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  bool countable = true;
  for (int64_t d = 0; d < dims; ++d) {
    countable = countable && !__builtin_mul_overflow(bytes, sizes[d], &bytes);
  }
  const bool large = countable && bytes >= kLargeBytes;
  void* const block = large && torch_from_blob ? take_block(bytes) : nullptr;
  if (block == nullptr) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(dims, sizes, strides, dtype, cpu, 0, &handle));
    return with_large_pages(Tensor(handle));
  }
  const auto free = [](void* data, void* size) {
    give_block(data, static_cast<int64_t>(reinterpret_cast<intptr_t>(size)));
  };
  STABLE_TORCH_ERROR_CODE_CHECK(torch_from_blob(block, dims, sizes, strides, 0, dtype, cpu, -1,
                                                &handle, aoti_torch_layout_strided(), nullptr, 0,
                                                free, reinterpret_cast<void*>(bytes)));
  return Tensor(handle);
}

inline int32_t dtype_code(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

// As torch.empty_like. The strides of tensors with gaps or overlaps are torch's to decide.
inline Tensor new_like(const Tensor& x) {
  if (x.numel() == 0 || !x.is_contiguous()) {
    return with_large_pages(torch::stable::empty_like(x));
  }
  return empty_strided(x.dim(), x.sizes().data(), x.strides().data(), dtype_code(x.scalar_type()));
}

inline Tensor new_tensor(const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    STD_TORCH_CHECK(!__builtin_mul_overflow(stride, shape[d] > 1 ? shape[d] : 1, &stride),
                    "expected a shape of fewer than 2^63 elements");
  }
  return empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                       dtype_code(dtype));
}

inline Tensor reduced(const Tensor& like, Reduction reduction) {
  std::vector<int64_t> shape;
  if (reduction == Reduction::kSample) shape.push_back(samples(like));
  return new_tensor(shape, arithmetic(like.scalar_type()));
}

// Checks the tensors of a call and keeps what its views point into.
class Arguments {
 public:
  Arguments(const char* function, const Tensor& like) : function_(function), like_(like) {
    STD_TORCH_CHECK(like.dim() <= kMaxDims, function_, ": expected at most ", kMaxDims,
                    " dimensions, got ", like.dim());
    shape_.dims = static_cast<int>(like.dim());
    shape_.sizes = like.sizes().data();
    shape_.samples = samples(like);
    STD_TORCH_CHECK(like.is_cpu(), function_, ": expected tensors on the CPU");
    strides_.reserve(kMaxDims);
  }

  Shape shape() const { return shape_; }
  Type type() const { return type_of(like_.scalar_type()); }
  Reduction reduction(int64_t code) const { return reduction_of(function_, code); }

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
    STD_TORCH_CHECK(
        per_sample ? grad.dim() == 1 && grad.size(0) == shape_.samples : grad.dim() == 0, function_,
        ": the upstream gradient has the wrong shape");
    strides_.assign(static_cast<size_t>(shape_.dims), 0);
    if (per_sample && shape_.dims) strides_[0] = grad.stride(0);
    return {grad.data_ptr(), strides_.data(), 0, true};
  }

  Keys keys(const Optional& key) {
    if (!key) return {};
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
    check_memory(function, key);
    const auto* words = static_cast<const uint64_t*>(key.data_ptr());
    const int64_t word = key.stride(key.dim() - 1);
    std::vector<Key> keys(static_cast<size_t>(key.dim() == 2 ? key.size(0) : 1));
    for (size_t i = 0; i < keys.size(); ++i) {
      const uint64_t* at = words + (key.dim() == 2 ? static_cast<int64_t>(i) * key.stride(0) : 0);
      keys[i] = {at[0], at[word]};
    }
    return keys;
  }

 protected:
  void check(const Tensor& x, ScalarType dtype) const {
    STD_TORCH_CHECK(x.scalar_type() == dtype, function_, ": expected tensors of one dtype");
    check_memory(function_, x);
  }

 private:
  const char* function_;
  const Tensor& like_;
  Shape shape_;
  std::vector<int64_t> strides_;
  std::vector<Key> keys_;
};

// Scratch for partial sums that lives as long as the call.
inline std::vector<double> partials(Call& call) {
  if (call.reduction == Reduction::kNone) return {};
  const Cut cut = cut_of(call);
  std::vector<double> scratch(static_cast<size_t>(cut.partials()));
  call.partials = scratch.data();
  return scratch;
}

}  // namespace genkern
