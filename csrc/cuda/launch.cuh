// The one kernel every op of a family runs in, and its launch.
//
// A body is called for each slot and returns what the slot adds to the sum, if the op has one. Sums
// are in double from slot to slot, and their order depends on the shape alone: a thread adds its
// slots, a block its threads, and a second launch the blocks of a sample where there are several.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cuda/slot.cuh"

namespace genkern::cuda {

constexpr int kThreads = 256;

// blockDim.x threads, a power of two, share a sample; their first one gets the sum.
__device__ inline double sum_threads(double x) {
  for (int step = min(blockDim.x, 32u) / 2; step > 0; step /= 2)
    x += __shfl_down_sync(0xffffffffu, x, step);
  if (blockDim.x <= 32) return x;
  __shared__ double warps[kThreads / 32];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread % 32 == 0) warps[thread / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < blockDim.x / 32; ++w) x += warps[thread / 32 + w];
  return x;
}

// The one stream of all slots. Every thread of the block calls it. Through shared memory: sums it
// knows, the compiler would work out again in every slot to save registers.
template <class PlanType>
__device__ Stream flat_stream(const PlanType& plan) {
  struct alignas(16) Shared {
    RoundKey keys[kPhiloxRounds];
  };
  __shared__ Shared shared;
  const Key key = plan.key_at(0);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread < kPhiloxRounds) shared.keys[thread] = round_key(key.seed, thread);
  __syncthreads();
  Stream stream;
#pragma unroll
  for (int r = 0; r < kPhiloxRounds; ++r) stream.keys[r] = shared.keys[r];
  stream.offset = key.offset;
  return stream;
}

template <class Body, class T, Walk kWalk>
__global__ void __launch_bounds__(kThreads, 1)
    run(const __grid_constant__ Plan<Body::kTensors> plan, const __grid_constant__ Body body) {
  using Position = typename PositionOf<kWalk, kPackLanes<T>, Plan<Body::kTensors>>::type;
  using SlotType = Slot<T, Position, Plan<Body::kTensors>>;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  double total = 0;
  const auto visit = [&](const auto& slot) {
    if constexpr (Body::kSums) {
      total += body(slot);
    } else {
      body(slot);
    }
  };
  Stream stream;
  if constexpr (Body::kDraws && kWalk == Walk::kFlat) stream = flat_stream(plan);
  if (sample < plan.samples) {
    const int64_t first = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
    const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x;
#pragma unroll 1
    for (int64_t i = first; i < plan.slots; i += step) visit(SlotType(plan, stream, sample, i));
    if constexpr (kWalk == Walk::kFlat) {
      using Single = FlatPosition<1, Plan<Body::kTensors>>;
#pragma unroll 1
      for (int64_t i = first; i < plan.tail; i += step)
        visit(
            Slot<T, Single, Plan<Body::kTensors>>(plan, stream, sample, plan.row - plan.tail + i));
    }
  }
  if constexpr (Body::kSums) {
    if (!plan.result) return;
    total = sum_threads(total);
    if (threadIdx.x || sample >= plan.samples) return;
    if (plan.partials) {
      plan.partials[sample * gridDim.y + blockIdx.y] = total;
    } else {
      using Acc = typename Arithmetic<T>::type;
      static_cast<Acc*>(plan.result)[sample] = static_cast<Acc>(total / plan.divisor);
    }
  }
}

// One warp a sample.
template <class Acc>
__global__ void __launch_bounds__(kThreads, 1)
    add_partials(const double* partials, Acc* result, int64_t samples, int blocks, double divisor) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  double total = 0;
  if (sample < samples)
    for (int i = threadIdx.x; i < blocks; i += 32) total += partials[sample * blocks + i];
  total = sum_threads(total);
  if (threadIdx.x == 0 && sample < samples) result[sample] = static_cast<Acc>(total / divisor);
}

inline unsigned ceil_divide(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// The current stream of the current device.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "genkern: CUDA: ", cudaGetErrorString(error));
}

struct Order {
  bool loop_repeats = false, by_sample = false;
};

// `like`: any tensor of the call; says where and on which stream. plan.result, if set, gets the
// sum.
template <class T, class Body>
void launch(Planner<Body::kTensors>& planner, const Body& body, const torch::stable::Tensor& like,
            Order order) {
  using Acc = typename Arithmetic<T>::type;
  constexpr int kLanes = kPackLanes<T>;
  const Walk walk = planner.build(order.loop_repeats, order.by_sample, kLanes, kBlockElements<Acc>);
  Plan<Body::kTensors>& plan = planner.plan;
  if (plan.samples == 0 || (plan.slots + plan.tail == 0 && !plan.result)) return;

  dim3 threads(kThreads);
  if (order.by_sample)
    while (threads.x > 1 && threads.x / 2 >= plan.slots) threads.x /= 2;
  threads.y = kThreads / threads.x;
  dim3 blocks(ceil_divide(plan.samples, threads.y), 1);
  const int64_t passes = std::max<int64_t>(ceil_divide(plan.slots, threads.x), 1);
  torch::stable::Tensor scratch;
  if (!plan.result) {
    // 4096 blocks keep a GPU evenly busy; beyond, up to eight slots a thread pay for its start.
    blocks.y = std::min<int64_t>({passes, std::max<int64_t>(4096, (passes + 7) / 8), 65535});
  } else {
    // Up to four passes of one block are quicker than a second launch. Beyond, 256 blocks keep a
    // GPU busy, eight slots a thread pay for the sum over a block, and more than 2048 blocks would
    // only lengthen the second launch.
    const int64_t busy = std::min<int64_t>(passes, 256 / blocks.x);
    const int64_t paid = std::min<int64_t>((passes + 7) / 8, 2048 / blocks.x);
    blocks.y = passes <= 4 ? 1 : std::max<int64_t>({busy, paid, 1});
    if (blocks.y > 1) {
      const int64_t size[] = {plan.samples * blocks.y};
      scratch = torch::stable::new_empty(like, size, torch::headeronly::ScalarType::Double);
      plan.partials = static_cast<double*>(scratch.mutable_data_ptr());
    }
  }
  const cudaStream_t stream = current_stream(like.get_device_index());
  switch (walk) {
    case Walk::kFlat:
      run<Body, T, Walk::kFlat><<<blocks, threads, 0, stream>>>(plan, body);
      break;
    case Walk::kRows:
      run<Body, T, Walk::kRows><<<blocks, threads, 0, stream>>>(plan, body);
      break;
    case Walk::kElements:
      run<Body, T, Walk::kElements><<<blocks, threads, 0, stream>>>(plan, body);
  }
  check_launch();
  if (plan.partials) {
    const dim3 lanes(32, kThreads / 32);
    add_partials<<<ceil_divide(plan.samples, lanes.y), lanes, 0, stream>>>(
        plan.partials, static_cast<Acc*>(plan.result), plan.samples, static_cast<int>(blocks.y),
        plan.divisor);
    check_launch();
  }
}

// Calls f with a value of the storage type.
template <class F>
void dispatch(torch::headeronly::ScalarType dtype, const char* op, F f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    case ScalarType::BFloat16:
      return f(__nv_bfloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float64, float16 or bfloat16, got dtype ",
                      static_cast<int>(dtype));
  }
}

}  // namespace genkern::cuda
