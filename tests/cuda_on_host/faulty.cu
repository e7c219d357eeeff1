// Kernels with one fault each, and the same without it: `faulty NAME [right]` runs one. What has
// to be said of each is in tests/test_cuda_on_host.py.
#include <cuda_fp16.h>

#undef NDEBUG
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>

namespace {

constexpr int kSize = 256;

// ---- memory

__global__ void copy(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i];
}

__global__ void copy_four(const float* in, float* out) {
  *reinterpret_cast<uint4*>(out + 4 * threadIdx.x) =
      *reinterpret_cast<const uint4*>(in + 4 * threadIdx.x);
}

__global__ void index_shared(float* out, int last) {
  __shared__ float values[kSize];
  values[threadIdx.x == kSize - 1 ? last : threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void sum_shared(float* out, int written) {
  __shared__ float values[kSize];
  if (static_cast<int>(threadIdx.x) < written) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[kSize - 1 - threadIdx.x];
}

__global__ void shift(int* out, int by) { out[threadIdx.x] = 1 << by; }

__global__ void claim(float* out, unsigned limit) {
  assert(threadIdx.x < limit);
  out[threadIdx.x] = 1;
}

// ---- races

__global__ void reverse(float* out, bool waits) {
  __shared__ float values[kSize];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (waits) __syncthreads();
  out[threadIdx.x] = values[kSize - 1 - threadIdx.x];
}

// The second barrier, which keeps the next round's writes from this round's reads.
__global__ void rotate(float* out, bool waits) {
  __shared__ float values[kSize];
  for (int round = 0; round < 2; ++round) {
    values[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    out[threadIdx.x] = values[(threadIdx.x + 1) % kSize];
    if (waits) __syncthreads();
  }
}

__global__ void count_shared(unsigned* out, bool atomically) {
  __shared__ unsigned count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (atomically) {
    atomicAdd(&count, 1u);
  } else {
    count += 1;
  }
  __syncthreads();
  out[threadIdx.x] = count;
}

__global__ void read_atomic(unsigned* out, bool waits) {
  __shared__ unsigned count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1u);
  if (waits) __syncthreads();
  out[threadIdx.x] = count;
}

__global__ void sum_blocks(float* out, unsigned stride) { out[blockIdx.x * stride] += 1; }

// A shuffle is no barrier.
__global__ void trust_shuffle(float* out, bool waits) {
  __shared__ float values[32];
  values[threadIdx.x] = 1;
  float x = __shfl_down_sync(0xffffffffu, 1.0f, 1);
  if (waits) __syncthreads();
  out[threadIdx.x] = x + values[31 - threadIdx.x];
}

// ---- divergence

__global__ void half_waits(float* out, unsigned waiting) {
  if (threadIdx.x < waiting) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers(float* out, unsigned first) {
  if (threadIdx.x < first) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void early_return(float* out, unsigned stay) {
  if (threadIdx.x >= stay) return;
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0f, 1);
}

__global__ void narrow_mask(float* out, unsigned mask) {
  out[threadIdx.x] = __shfl_up_sync(mask, 1.0f, 1);
}

// A buffer of exactly n numbers.
template <class T>
struct Buffer {
  explicit Buffer(size_t n) : data(static_cast<T*>(std::calloc(n, sizeof(T)))) {}
  ~Buffer() { std::free(data); }
  T* data;
};

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, const Arguments&... arguments) {
  const cudaLaunchConfig_t config{blocks, threads, 0, nullptr};
  cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace

int main(int argc, char** argv) {
  const bool right = argc > 2;
  Buffer<float> in(kSize), out(kSize);
  Buffer<unsigned> counts(kSize);
  Buffer<int> ints(kSize);
  float *x = in.data, *y = out.data;
  const std::map<std::string, std::function<void()>> cases = {
      {"read_past_the_end", [&] { run(copy, 2, kSize, x + (right ? 0 : 1), y, kSize); }},
      {"write_past_the_end", [&] { run(copy, 2, kSize, x, y, right ? kSize : kSize + 1); }},
      {"misaligned", [&] { run(copy_four, 1, 32, x + (right ? 0 : 1), y); }},
      {"shared_index", [&] { run(index_shared, 1, kSize, y, right ? kSize - 1 : kSize); }},
      {"shared_unwritten", [&] { run(sum_shared, 1, kSize, y, right ? kSize : kSize - 1); }},
      {"shift", [&] { run(shift, 1, 32, ints.data, right ? 3 : 32); }},
      {"assertion", [&] { run(claim, 1, 32, y, right ? 32u : 31u); }},
      {"race_read_after_write", [&] { run(reverse, 1, kSize, y, right); }},
      {"race_write_after_read", [&] { run(rotate, 1, kSize, y, right); }},
      {"race_count", [&] { run(count_shared, 1, kSize, counts.data, right); }},
      {"race_with_atomic", [&] { run(read_atomic, 1, kSize, counts.data, right); }},
      {"race_of_blocks", [&] { run(sum_blocks, 2, 1, y, right ? 1u : 0u); }},
      {"race_shuffle", [&] { run(trust_shuffle, 1, 32, y, right); }},
      {"divergent_barrier", [&] { run(half_waits, 1, kSize, y, right ? kSize + 0u : 128u); }},
      {"two_barriers", [&] { run(two_barriers, 1, kSize, y, right ? kSize + 0u : 128u); }},
      {"divergent_shuffle", [&] { run(early_return, 1, 32, y, right ? 32u : 31u); }},
      {"narrow_mask", [&] { run(narrow_mask, 1, 32, y, right ? ~0u : 0xffffu); }},
      {"too_many_threads", [&] { run(copy, 1, right ? 1024 : 1025, x, y, kSize); }},
      {"too_many_blocks", [&] { run(copy, dim3(1, right ? 65535 : 65536), 1, x, y, 0); }},
  };
  if (argc == 1) {
    for (const auto& [name, body] : cases) std::puts(name.c_str());
    return 0;
  }
  cases.at(argv[1])();
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  return error != cudaSuccess;
}
