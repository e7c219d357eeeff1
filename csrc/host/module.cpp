// genkern_host: the noise of genkern.random for NumPy, without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cpu/capability.h"
#include "genkern/philox.h"
#include "host/streams.h"

namespace py = pybind11;

namespace genkern {
namespace {

using KeyArray = py::array_t<uint64_t, py::array::c_style>;

Streams streams() { return GENKERN_DISPATCH(streams()); }

std::string describe(const py::array& array) {
  return py::str(array.dtype()).cast<std::string>() + " of shape " +
         py::str(array.attr("shape")).cast<std::string>();
}

py::object numpy(const char* function, const py::object& argument) {
  return py::module_::import("numpy").attr(function)(argument);
}

KeyArray checked_key(const char* function, const py::array& key) {
  const bool words =
      py::isinstance<py::array_t<uint64_t>>(key) || py::isinstance<py::array_t<int64_t>>(key);
  const std::string expected = std::string(function) + ": expected key to be a uint64 array ";
  if (!words) throw py::type_error(expected + "(or int64), got " + describe(key));
  const bool pairs = (key.ndim() == 1 || key.ndim() == 2) && key.shape(key.ndim() - 1) == 2;
  if (!pairs) throw py::value_error(expected + "of shape (2,) or (B, 2), got " + describe(key));
  return numpy("ascontiguousarray", key).attr("view")("uint64").cast<KeyArray>();
}

std::vector<py::ssize_t> checked_shape(const char* function, const py::object& shape,
                                       const KeyArray& key) {
  std::vector<py::ssize_t> sizes;
  try {
    if (PySequence_Check(shape.ptr()))
      sizes = shape.cast<std::vector<py::ssize_t>>();
    else
      sizes = {shape.cast<py::ssize_t>()};
  } catch (const py::cast_error&) {
    throw py::type_error(std::string(function) + ": expected shape to be integers, got " +
                         py::repr(shape).cast<std::string>());
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

template <class T>
py::array draw(const KeyArray& key, const std::vector<py::ssize_t>& shape,
               void (*fill)(Key, int64_t, T*)) {
  py::array_t<T> out(shape);
  const int64_t keys = key.size() / 2;
  const int64_t count = keys ? out.size() / keys : 0;
  const uint64_t* words = key.data();
  T* numbers = out.mutable_data();
  py::gil_scoped_release release;
  for (int64_t b = 0; b < keys; ++b)
    fill({words[2 * b], words[2 * b + 1]}, count, numbers + b * count);
  return std::move(out);
}

// Calls the stream of the dtype that was asked for.
py::array draw(const char* function, const py::object& key, const py::object& shape,
               const py::object& dtype, void (*fill)(Key, int64_t, float*),
               void (*fill64)(Key, int64_t, double*)) {
  const KeyArray words = checked_key(function, numpy("asarray", key));
  const std::vector<py::ssize_t> sizes = checked_shape(function, shape, words);
  const py::dtype type = py::dtype::from_args(dtype);
  if (type.equal(py::dtype::of<float>())) return draw<float>(words, sizes, fill);
  if (type.equal(py::dtype::of<double>())) return draw<double>(words, sizes, fill64);
  throw py::type_error(std::string(function) + ": expected dtype to be float32 or float64, got " +
                       py::str(type).cast<std::string>());
}

py::array uniform(const py::object& key, const py::object& shape, const py::object& dtype) {
  return draw("uniform", key, shape, dtype, streams().uniform, streams().uniform64);
}

py::array normal(const py::object& key, const py::object& shape, const py::object& dtype) {
  return draw("normal", key, shape, dtype, streams().normal, streams().normal64);
}

void store(Key key, uint64_t* out) {
  out[0] = key.seed;
  out[1] = key.offset;
}

py::object split(const py::object& key, int64_t num) {
  const py::array parent = numpy("asarray", key);
  const KeyArray words = checked_key("split", parent);
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
  return out.attr("view")(parent.dtype());
}

py::object fold_in_array(const py::object& key, const py::object& integers) {
  const py::array parent = numpy("asarray", key), data = numpy("asarray", integers);
  const KeyArray words = checked_key("fold_in", parent);
  if (data.dtype().kind() != 'i' && data.dtype().kind() != 'u')
    throw py::type_error("fold_in: expected data to be integers, got " + describe(data));
  const bool one_key = words.ndim() == 1;
  if (data.ndim() > 1 || (data.ndim() == 1 && !one_key && data.shape(0) != words.shape(0)))
    throw py::value_error("fold_in: expected data to be one integer or one for each key, got " +
                          describe(data) + " for key of shape " +
                          py::str(words.attr("shape")).cast<std::string>());
  const auto indices =
      numpy("ascontiguousarray", data).attr("astype")("int64").cast<py::array_t<int64_t>>();
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
  return out.attr("view")(parent.dtype());
}

py::dict build_info() {
  py::dict info;
  info["version"] = GENKERN_VERSION;
  info["compiler"] = GENKERN_COMPILER;
  info["flags"] = GENKERN_FLAGS;
  const char* const names[] = {"baseline", "avx2", "avx512"};
  info["capability"] = names[static_cast<int>(capability())];
  return info;
}

}  // namespace
}  // namespace genkern

PYBIND11_MODULE(genkern_host, m) {
  m.doc() =
      "The noise of genkern.random for NumPy, without torch.\n\n"
      "A key is a uint64 array [seed, offset] of shape (2,), or (B, 2) for one key a sample; "
      "int64\n"
      "arrays are taken bit for bit. The numbers equal those of genkern.random, bit for bit.";
  m.attr("__version__") = GENKERN_VERSION;
  m.def("uniform", &genkern::uniform, py::arg("key"), py::arg("shape"),
        py::arg("dtype") = "float32",
        "Uniform numbers in [0, 1).\n\n"
        "Args:\n"
        "  key: Array of shape (2,), or (B, 2) where shape starts with B.\n"
        "  shape: An integer or a sequence of integers.\n"
        "  dtype: float32 or float64.\n\n"
        "Returns:\n"
        "  A new array.");
  m.def("normal", &genkern::normal, py::arg("key"), py::arg("shape"), py::arg("dtype") = "float32",
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
        "The version, compiler and flags of this build, and the instruction set it uses here\n"
        "(less than the best if the environment variable GENKERN_CPU_CAPABILITY says so).");
}
