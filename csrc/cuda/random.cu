// normal, uniform, split, fold_in on CUDA devices.
#include "cuda/launch.cuh"
#include "cuda/ops.h"
#include "cuda/random.cuh"

namespace genkern::cuda {
namespace {

template <template <class> class Body>
Tensor draw(const char* op, const Tensor& key, const std::vector<int64_t>& shape,
            ScalarType dtype) {
  const torch::stable::accelerator::DeviceGuard guard(key.get_device_index());
  Tensor out = torch::stable::new_empty(key, shape, dtype);
  dispatch(dtype, op, [&](auto storage) {
    using T = decltype(storage);
    Planner<1> planner(shape);
    planner.output(0, out);
    planner.key(key);
    launch<T>(planner, Body<typename Arithmetic<T>::type>{}, out, {});
  });
  return out;
}

// Child i of each of `keys` keys gets index data[i * data_step], or i where there is no data.
__global__ void __launch_bounds__(kThreads)
    fold(const uint64_t* key, int64_t key_stride, int64_t word_stride, int64_t keys,
         const int64_t* data, int64_t data_stride, uint64_t* out, int64_t total) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const int64_t row = i / keys;
    const uint64_t* k = key + (i - row * keys) * key_stride;
    const Key child = genkern::fold_in({k[0], k[word_stride]}, data ? data[i * data_stride] : row);
    out[2 * i] = child.seed;
    out[2 * i + 1] = child.offset;
  }
}

Tensor fold_keys(const Tensor& key, const Tensor* data, const std::vector<int64_t>& shape,
                 int64_t keys) {
  const torch::stable::accelerator::DeviceGuard guard(key.get_device_index());
  Tensor out = torch::stable::new_empty(key, shape);
  const int64_t total = out.numel() / 2;
  if (total == 0) return out;
  const int64_t blocks = std::min<int64_t>((total + kThreads - 1) / kThreads, 65535);
  start(fold, static_cast<unsigned>(blocks), kThreads, current_stream(key.get_device_index()),
        static_cast<const uint64_t*>(key.const_data_ptr()), key.dim() > 1 ? key.stride(0) : 0,
        key.stride(-1), keys, data ? static_cast<const int64_t*>(data->const_data_ptr()) : nullptr,
        data && data->dim() > 0 ? data->stride(0) : 0,
        static_cast<uint64_t*>(out.mutable_data_ptr()), total);
  return out;
}

}  // namespace

Tensor normal(Tensor key, std::vector<int64_t> shape, ScalarType dtype) {
  return draw<Normal>("normal", key, shape, dtype);
}

Tensor uniform(Tensor key, std::vector<int64_t> shape, ScalarType dtype) {
  return draw<Uniform>("uniform", key, shape, dtype);
}

Tensor split(Tensor key, int64_t num) {
  if (key.dim() == 1) return fold_keys(key, nullptr, {num, 2}, 1);
  return fold_keys(key, nullptr, {num, key.size(0), 2}, key.size(0));
}

Tensor fold_in(Tensor key, Tensor data) {
  if (key.dim() == 1 && data.dim() == 0) return fold_keys(key, &data, {2}, 1);
  const int64_t keys = key.dim() == 1 ? data.size(0) : key.size(0);
  return fold_keys(key, &data, {keys, 2}, keys);
}

}  // namespace genkern::cuda
