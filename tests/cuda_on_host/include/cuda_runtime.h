// The part of CUDA that csrc/cuda uses, on a CPU: one kernel thread after the other, each on a
// stack of its own. What is here by CUDA's name does what the CUDA C++ Programming Guide says of
// it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
// Also the name of an attribute that the C++ library's headers use: it may only vanish.
#define __noinline__
#define __forceinline__ inline __attribute__((always_inline))
// The thread-local data of this library are its shared memory: launch.cpp knows where they lie.
#define __shared__ static thread_local

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- launches

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace cuda_on_host {

// Where in the sources a thread waits.
struct Site {
  const char* what;
  const char* file;
  int line;
};

// A kernel with its arguments.
struct Launch {
  const void* kernel;
  void (*run)(const void* call);  // one thread
  const void* call;
  size_t size;
};
cudaError_t run_grid(const cudaLaunchConfig_t& config, const Launch& launch);
void synchronize_block(const Site& site);
// Exchanges words of the warp; `source` is a lane, or the thread's own for none.
uint64_t shuffle(unsigned mask, uint64_t word, int source, const Site& site);
int lane();

// Atomic accesses race with plain ones, not with each other.
void atomic_access(const void* address, size_t size, const void* code);

template <class T>
T shuffle(unsigned mask, T value, int source, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  word = shuffle(mask, word, source, site);
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class Kernel, class... Parameters>
struct Call {
  Kernel kernel;
  std::tuple<Parameters...> arguments;

  // Of the arguments a thread gets copies, which are nobody else's.
  __attribute__((no_sanitize("thread"))) static void run(const void* call) {
    const auto& self = *static_cast<const Call*>(call);
    std::apply(self.kernel, self.arguments);
  }
};

}  // namespace cuda_on_host

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using Call = cuda_on_host::Call<void (*)(Parameters...), Parameters...>;
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  return cuda_on_host::run_grid(
      *config, {reinterpret_cast<const void*>(kernel), &Call::run, &call, sizeof call});
}

// ---- what a thread sees

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_host::synchronize_block({"__syncthreads", file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int step, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  const int source = cuda_on_host::lane() + step;
  return cuda_on_host::shuffle(mask, value, source < 32 ? source : cuda_on_host::lane(),
                               {"__shfl_down_sync", file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int step, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  const int source = cuda_on_host::lane() - step;
  return cuda_on_host::shuffle(mask, value, source >= 0 ? source : cuda_on_host::lane(),
                               {"__shfl_up_sync", file, line});
}

template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomicAdd(T* address, T value) {
  cuda_on_host::atomic_access(address, sizeof value, __builtin_return_address(0));
  const T before = *address;
  *address += value;
  return before;
}
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T atomicMin(T* address, T value) {
  cuda_on_host::atomic_access(address, sizeof value, __builtin_return_address(0));
  const T before = *address;
  if (value < before) *address = value;
  return before;
}

// ---- arithmetic

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

namespace cuda_on_host {
template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_on_host

inline float __uint_as_float(unsigned x) { return cuda_on_host::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_host::bit_cast<unsigned>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_host::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_host::bit_cast<long long>(x); }
inline double __hiloint2double(int high, int low) {
  return __longlong_as_double(static_cast<long long>(
      static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low)));
}
inline int __double2loint(double x) { return static_cast<int>(__double_as_longlong(x)); }
inline int __double2hiint(double x) { return static_cast<int>(__double_as_longlong(x) >> 32); }
