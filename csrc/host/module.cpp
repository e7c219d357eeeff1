// genkern_host: the noise of genkern.random for NumPy, without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "genkern/host_device.h"
#include "genkern/normal.h"
#include "genkern/philox.h"

namespace py = pybind11;

namespace genkern {
namespace {

using KeyArray = py::array_t<uint64_t, py::array::c_style>;

// Blocks drawn at a time: enough for SIMD loops to pay, few enough for the stack.
constexpr int kBlocks = 64;

// The words of kBlocks consecutive blocks, word by word, as SIMD loops want them.
struct Batch {
  uint32_t w[4][kBlocks];
};

GENKERN_HD void draw_words(Key key, uint64_t first, Batch& batch) {
#pragma omp simd
  for (int i = 0; i < kBlocks; ++i) {
    const Words b = philox_block(key, first + i);
    batch.w[0][i] = b.w[0];
    batch.w[1][i] = b.w[1];
    batch.w[2][i] = b.w[2];
    batch.w[3][i] = b.w[3];
  }
}

GENKERN_HD void draw_normals(const uint32_t* x, const uint32_t* y, float* a, float* b) {
#pragma omp simd
  for (int i = 0; i < kBlocks; ++i) {
    float cosine, sine;
    box_muller<ScalarLanes>(x[i], y[i], cosine, sine);
    a[i] = cosine;
    b[i] = sine;
  }
}

struct Uniform {
  static constexpr char kName[] = "uniform";
  static GENKERN_HD void fill(const Batch& batch, float* out) {
    for (int i = 0; i < kBlocks; ++i)
      for (int lane = 0; lane < 4; ++lane) out[4 * i + lane] = uniform_float(batch.w[lane][i]);
  }
  static GENKERN_HD void fill(const Batch& batch, double* out) {
    for (int i = 0; i < kBlocks; ++i)
      for (int lane = 0; lane < 2; ++lane)
        out[2 * i + lane] = uniform_double(batch.w[2 * lane][i], batch.w[2 * lane + 1][i]);
  }
};

struct Normal {
  static constexpr char kName[] = "normal";
  static GENKERN_HD void fill(const Batch& batch, float* out) {
    float z[4][kBlocks];
    draw_normals(batch.w[0], batch.w[1], z[0], z[1]);
    draw_normals(batch.w[2], batch.w[3], z[2], z[3]);
    for (int i = 0; i < kBlocks; ++i)
      for (int lane = 0; lane < 4; ++lane) out[4 * i + lane] = z[lane][i];
  }
  static GENKERN_HD void fill(const Batch& batch, double* out) {
    for (int i = 0; i < kBlocks; ++i) {
      const Normals64 n =
          normal2({{batch.w[0][i], batch.w[1][i], batch.w[2][i], batch.w[3][i]}});
      out[2 * i] = n.z[0];
      out[2 * i + 1] = n.z[1];
    }
  }
};

// The first `count` numbers of a key's stream.
template <class Distribution, class T>
GENKERN_HD void fill_stream(Key key, int64_t count, T* out) {
  constexpr int64_t kNumbers = kBlocks * (sizeof(T) == 4 ? 4 : 2);
  Batch batch;
  T tail[kNumbers];
  for (int64_t start = 0; start < count; start += kNumbers) {
    draw_words(key, static_cast<uint64_t>(start / kNumbers) * kBlocks, batch);
    if (count - start >= kNumbers) {
      Distribution::fill(batch, out + start);
    } else {
      Distribution::fill(batch, tail);
      std::copy_n(tail, count - start, out + start);
    }
  }
}

template <class Distribution, class T>
void fill_stream_baseline(Key key, int64_t count, T* out) {
  fill_stream<Distribution>(key, count, out);
}

#if defined(__x86_64__)
// The same bits many times faster: without the instruction, fma is a call of the C library.
template <class Distribution, class T>
__attribute__((target("avx2,fma"))) void fill_stream_avx2(Key key, int64_t count, T* out) {
  fill_stream<Distribution>(key, count, out);
}
#endif

template <class Distribution, class T>
auto fastest_fill_stream() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return fill_stream_avx2<Distribution, T>;
#endif
  return fill_stream_baseline<Distribution, T>;
}

std::string describe(const py::array& array) {
  return py::str(array.dtype()).cast<std::string>() + " of shape " +
         py::str(array.attr("shape")).cast<std::string>();
}

KeyArray checked_key(const char* function, const py::array& key) {
  const bool words =
      py::isinstance<py::array_t<uint64_t>>(key) || py::isinstance<py::array_t<int64_t>>(key);
  const std::string expected = std::string(function) + ": expected key to be a uint64 array ";
  if (!words) throw py::type_error(expected + "(or int64), got " + describe(key));
  const bool pairs = (key.ndim() == 1 || key.ndim() == 2) && key.shape(key.ndim() - 1) == 2;
  if (!pairs) throw py::value_error(expected + "of shape (2,) or (B, 2), got " + describe(key));
  const py::object contiguous = py::module_::import("numpy").attr("ascontiguousarray")(key);
  return contiguous.attr("view")("uint64").cast<KeyArray>();
}

std::vector<py::ssize_t> checked_shape(const char* function, const py::object& shape,
                                       const KeyArray& key) {
  std::vector<py::ssize_t> sizes;
  if (py::isinstance<py::int_>(shape)) {
    sizes = {shape.cast<py::ssize_t>()};
  } else {
    try {
      sizes = shape.cast<std::vector<py::ssize_t>>();
    } catch (const py::cast_error&) {
      throw py::type_error(std::string(function) + ": expected shape to be integers, got " +
                           py::repr(shape).cast<std::string>());
    }
  }
  if (std::any_of(sizes.begin(), sizes.end(), [](py::ssize_t size) { return size < 0; }))
    throw py::value_error(std::string(function) + ": expected shape to be non-negative, got " +
                          py::repr(shape).cast<std::string>());
  if (key.ndim() == 2 && (sizes.empty() || sizes[0] != key.shape(0)))
    throw py::value_error(std::string(function) + ": expected shape to start with " +
                          std::to_string(key.shape(0)) + ", the number of keys, got " +
                          py::repr(shape).cast<std::string>());
  return sizes;
}

template <class Distribution, class T>
py::array draw(const KeyArray& key, const std::vector<py::ssize_t>& shape) {
  py::array_t<T> out(shape);
  const int64_t streams = key.ndim() == 2 ? key.shape(0) : 1;
  const int64_t count = streams ? out.size() / streams : 0;
  const uint64_t* words = key.data();
  T* numbers = out.mutable_data();
  const auto fill = fastest_fill_stream<Distribution, T>();
  py::gil_scoped_release release;
  for (int64_t b = 0; b < streams; ++b)
    fill({words[2 * b], words[2 * b + 1]}, count, numbers + b * count);
  return out;
}

template <class Distribution>
py::array draw(const py::array& key, const py::object& shape, const py::object& dtype) {
  const KeyArray words = checked_key(Distribution::kName, key);
  const std::vector<py::ssize_t> sizes = checked_shape(Distribution::kName, shape, words);
  const py::dtype type = py::dtype::from_args(dtype);
  if (type.equal(py::dtype::of<float>())) return draw<Distribution, float>(words, sizes);
  if (type.equal(py::dtype::of<double>())) return draw<Distribution, double>(words, sizes);
  throw py::type_error(std::string(Distribution::kName) +
                       ": expected dtype to be float32 or float64, got " +
                       py::str(type).cast<std::string>());
}

void store(Key key, uint64_t* out) {
  out[0] = key.seed;
  out[1] = key.offset;
}

py::object split(const py::array& key, int64_t num) {
  const KeyArray words = checked_key("split", key);
  if (num < 0)
    throw py::value_error("split: expected num to be non-negative, got " + std::to_string(num));
  std::vector<py::ssize_t> shape(words.shape(), words.shape() + words.ndim());
  shape.insert(shape.begin(), num);
  KeyArray out(shape);
  const uint64_t* in = words.data();
  uint64_t* children = out.mutable_data();
  const int64_t keys = words.size() / 2;
  {
    py::gil_scoped_release release;
    for (int64_t i = 0; i < num; ++i)
      for (int64_t b = 0; b < keys; ++b)
        store(fold_in({in[2 * b], in[2 * b + 1]}, i), children + 2 * (i * keys + b));
  }
  return out.attr("view")(key.dtype());
}

py::object fold_in_array(const py::array& key, const py::array& data) {
  const KeyArray words = checked_key("fold_in", key);
  if (data.dtype().kind() != 'i' && data.dtype().kind() != 'u')
    throw py::type_error("fold_in: expected data to be integers, got " + describe(data));
  const bool one_key = words.ndim() == 1;
  if (data.ndim() > 1 || (data.ndim() == 1 && !one_key && data.shape(0) != words.shape(0)))
    throw py::value_error("fold_in: expected data to be one integer or one for each key, got " +
                          describe(data) + " for key of shape " +
                          py::str(words.attr("shape")).cast<std::string>());
  const py::object integers = py::module_::import("numpy").attr("ascontiguousarray")(data);
  const auto indices = integers.attr("astype")("int64").cast<py::array_t<int64_t>>();
  const bool one_index = data.ndim() == 0;
  const py::ssize_t count = one_key ? indices.size() : words.shape(0);
  KeyArray out(one_key && one_index ? std::vector<py::ssize_t>{2}
                                    : std::vector<py::ssize_t>{count, 2});
  const uint64_t* in = words.data();
  const int64_t* index = indices.data();
  uint64_t* folded = out.mutable_data();
  {
    py::gil_scoped_release release;
    for (int64_t b = 0; b < count; ++b) {
      const uint64_t* k = in + (one_key ? 0 : 2 * b);
      store(fold_in({k[0], k[1]}, static_cast<uint64_t>(index[one_index ? 0 : b])), folded + 2 * b);
    }
  }
  return out.attr("view")(key.dtype());
}

py::dict build_info() {
  py::dict info;
  info["version"] = GENKERN_VERSION;
  info["compiler"] = GENKERN_COMPILER;
  info["flags"] = GENKERN_FLAGS;
  return info;
}

}  // namespace
}  // namespace genkern

PYBIND11_MODULE(genkern_host, m) {
  m.doc() =
      "The noise of genkern.random for NumPy, without torch.\n\n"
      "A key is a uint64 array [seed, offset] of shape (2,), or (B, 2) for one key a sample; int64\n"
      "arrays are taken bit for bit. The numbers equal those of genkern.random, bit for bit.";
  m.attr("__version__") = GENKERN_VERSION;
  m.def("uniform", &genkern::draw<genkern::Uniform>, py::arg("key"), py::arg("shape"),
        py::arg("dtype") = "float32",
        "Uniform numbers in [0, 1).\n\n"
        "Args:\n"
        "  key: Array of shape (2,), or (B, 2) where shape starts with B.\n"
        "  shape: An integer or a sequence of integers.\n"
        "  dtype: float32 or float64.\n\n"
        "Returns:\n"
        "  A new array.");
  m.def("normal", &genkern::draw<genkern::Normal>, py::arg("key"), py::arg("shape"), py::arg("dtype") = "float32",
        "Standard normal numbers.\n\n"
        "Args:\n"
        "  key: Array of shape (2,), or (B, 2) where shape starts with B.\n"
        "  shape: An integer or a sequence of integers.\n"
        "  dtype: float32 or float64.\n\n"
        "Returns:\n"
        "  A new array.");
  m.def("split", &genkern::split, py::arg("key"), py::arg("num") = 2,
        "Independent keys made from one. Do not draw from a key that was split.\n\n"
        "Args:\n"
        "  key: Array of shape (2,) or (B, 2).\n"
        "  num: How many.\n\n"
        "Returns:\n"
        "  Keys of shape (num, 2) or (num, B, 2), of the dtype of key.");
  m.def("fold_in", &genkern::fold_in_array, py::arg("key"), py::arg("data"),
        "The key that belongs to an integer, such as a step or a sample's index.\n\n"
        "Args:\n"
        "  key: Array of shape (2,) or (B, 2).\n"
        "  data: An integer, or one integer for each key, shape (B,).\n\n"
        "Returns:\n"
        "  Keys of shape (2,) or (B, 2), of the dtype of key.");
  m.def("build_info", &genkern::build_info,
        "The version, compiler and compiler flags this module was built with.");
}
