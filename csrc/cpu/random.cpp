#include "cpu/arguments.h"
#include "genkern/philox.h"

namespace genkern {
namespace {

Tensor numbers(const char* function, const Tensor& key, const std::vector<int64_t>& shape,
               ScalarType dtype, bool normal) {
  const std::vector<Key> keys = Arguments::read_keys(function, key);
  const bool per_sample = key.dim() == 2;
  STD_TORCH_CHECK(!per_sample || (!shape.empty() && shape[0] == key.size(0)), function,
                  ": expected the first size to be the number of keys");
  Numbers call;
  call.type = type_of(dtype);
  const Tensor out = new_tensor(shape, dtype);
  call.samples = per_sample ? shape[0] : 1;
  call.length = call.samples ? out.numel() / call.samples : 0;
  call.keys = {keys.data(), per_sample};
  call.out = out.data_ptr();
  call.normal = normal;
  call.parallel = parallel;
  if (out.numel()) GENKERN_KERNELS(random).numbers(call);
  return out;
}

void write_key(Key key, uint64_t* out) {
  out[0] = key.seed;
  out[1] = key.offset;
}

}  // namespace

Tensor normal(const Tensor& key, std::vector<int64_t> shape, ScalarType dtype) {
  return numbers("normal", key, shape, dtype, true);
}

Tensor uniform(const Tensor& key, std::vector<int64_t> shape, ScalarType dtype) {
  return numbers("uniform", key, shape, dtype, false);
}

Tensor split(const Tensor& key, int64_t num) {
  STD_TORCH_CHECK(num >= 0, "split: expected num of at least 0");
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

Tensor fold_in(const Tensor& key, const Tensor& data) {
  const std::vector<Key> keys = Arguments::read_keys("fold_in", key);
  const bool per_item = data.dim() == 1;
  const int64_t n = key.dim() == 2 ? key.size(0) : per_item ? data.size(0) : 1;
  STD_TORCH_CHECK(data.is_cpu() && data.scalar_type() == ScalarType::Long && data.dim() <= 1 &&
                      (!per_item || data.size(0) == n),
                  "fold_in: expected int64 data of shape () or (B,)");
  check_memory("fold_in", data);
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

}  // namespace genkern
