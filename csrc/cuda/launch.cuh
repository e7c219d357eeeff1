// The one kernel every op of a family runs in, and its launch.
//
// A body is called for each slot and returns what the slot adds to the sum, if the op has one. Sums
// are in double from slot to slot, and their order depends on the shape alone: a thread adds its
// slots, a block its threads, and a second launch the blocks of a result where there are several.
//
// Where a body reads numbers of the sample, `of(plan, sample)` reads them, once a thread, and what
// it returns is called for each slot.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cuda/slot.cuh"

namespace genkern::cuda {

__device__ inline double shuffle_down(double x, int step) {
  return __shfl_down_sync(0xffffffffu, x, step);
}

__device__ inline int thread_in_block() { return threadIdx.y * blockDim.x + threadIdx.x; }

// Each `width` threads, a power of two, share a result; the first of them gets their sum.
template <class Sum>
__device__ Sum sum_threads(Sum x, int width) {
  for (int step = min(width, 32) / 2; step > 0; step /= 2) x += shuffle_down(x, step);
  if (width <= 32) return x;
  __shared__ Sum warps[kThreads / 32];
  const int thread = thread_in_block();
  if (thread % 32 == 0) warps[thread / 32] = x;
  __syncthreads();
  if ((thread & (width - 1)) == 0)
    for (int w = 1; w < width / 32; ++w) x += warps[thread / 32 + w];
  return x;
}

// The stream of the slots, from its block `first_block` on. Every thread of the block calls it.
// Through shared memory: sums it knows, the compiler would work out again in every slot to save
// registers.
template <class PlanType>
__device__ Stream flat_stream(const PlanType& plan, int64_t key_offset, uint64_t first_block) {
  struct alignas(16) Shared {
    RoundKey keys[kPhiloxRounds];
  };
  __shared__ Shared shared;
  const Key key = plan.key_at(key_offset);
  const int thread = thread_in_block();
  if (thread < kPhiloxRounds) shared.keys[thread] = round_key(key.seed, thread);
  __syncthreads();
  Stream stream;
#pragma unroll
  for (int r = 0; r < kPhiloxRounds; ++r) stream.keys[r] = shared.keys[r];
  stream.offset = key.offset + first_block;
  return stream;
}

// Calls visit(slot) for the slots of this thread; `view`: the plan, or the sample's own.
template <class T, Walk kWalk, class PlanType, class View, class Visit>
__device__ void for_slots(const PlanType& plan, const View& view, const Stream& stream,
                          int64_t sample, const Visit& visit) {
  using Position = typename PositionOf<kWalk, kPackLanes<T>, View>::type;
  using Index = typename Position::Index;
  const uint32_t first = blockIdx.y * blockDim.x + threadIdx.x;
#pragma unroll 1
  for (Index i = first; i < static_cast<Index>(plan.slots); i += plan.step)
    visit(Slot<T, Position, View>(view, stream, sample, i));
  if constexpr (kWalk == Walk::kFlat) {
    using Single = FlatPosition<1, View>;
#pragma unroll 1
    for (int64_t i = first; i < plan.tail; i += plan.step)
      visit(Slot<T, Single, View>(view, stream, sample, plan.row - plan.tail + i));
  }
}
template <class T, Walk kWalk, bool kKeeps = false, class PlanType, class Visit>
__device__ void for_sample_slots(const PlanType& plan, const Stream& stream, int64_t sample,
                                 const Visit& visit) {
  if constexpr (kWalk == Walk::kFlat) {
    for_slots<T, kWalk>(plan, SamplePlan<T, kKeeps, PlanType>(plan, sample), stream, sample, visit);
  } else {
    for_slots<T, kWalk>(plan, plan, stream, sample, visit);
  }
}

template <class Acc>
__device__ void finish(double value, Acc* result, bool adds) {
  *result = adds ? *result + static_cast<Acc>(value) : static_cast<Acc>(value);
}

template <class Body, class T, Walk kWalk>
__global__ void __launch_bounds__(kThreads, kBlocks<Body, T, kWalk>)
    run(const __grid_constant__ Plan<Body::kTensors> plan, const __grid_constant__ Body body) {
  using Acc = typename Arithmetic<T>::type;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  Stream stream;
  if constexpr (Body::kDraws && kWalk == Walk::kFlat) {
    using PlanType = Plan<Body::kTensors>;
    if constexpr (Body::kBySample) {
      // A block that serves several samples has one key for them: see Planner::is_flat.
      const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y;
      stream = flat_stream(plan, first * plan.sample_stride[PlanType::kKey],
                           sample * plan.sample_stride[PlanType::kIndex] / kBlockElements<Acc>);
    } else {
      stream = flat_stream(plan, 0, 0);
    }
  }
  double total = 0;
  const auto visit = [&](const auto& work, const auto& slot) {
    if constexpr (Body::kSums) {
      total += work(slot);
    } else {
      work(slot);
    }
  };
  if (sample < plan.samples) {
    if constexpr (Body::kBySample) {
      if (plan.slots + plan.tail > 0) {
        const auto work = body.of(plan, sample);
        for_sample_slots<T, kWalk, kKept<Body, T>>(plan, stream, sample,
                                                   [&](const auto& slot) { visit(work, slot); });
      }
    } else {
      for_slots<T, kWalk>(plan, plan, stream, sample, [&](const auto& slot) { visit(body, slot); });
    }
  }
  if constexpr (Body::kSums) {
    if (!plan.result) return;
    const int width = plan.result_by_sample ? blockDim.x : kThreads;
    total = sum_threads(total, width);
    if (thread_in_block() & (width - 1) || sample >= plan.samples) return;
    const int64_t result = plan.result_by_sample ? sample : 0;
    if (plan.partials) {
      const int64_t row = plan.result_by_sample ? sample : blockIdx.x;
      plan.partials[row * gridDim.y + blockIdx.y] = total;
    } else {
      finish(total / plan.divisor, static_cast<Acc*>(plan.result) + result, plan.adds);
    }
  }
}

// blockDim.x threads a result.
template <class Acc>
__global__ void __launch_bounds__(kThreads, 1)
    add_partials(const double* partials, Acc* out, int64_t results, int64_t blocks, double divisor,
                 bool adds) {
  const int64_t result = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  double total = 0;
  if (result < results)
    for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x)
      total += partials[result * blocks + i];
  total = sum_threads(total, blockDim.x);
  if (threadIdx.x == 0 && result < results) finish(total / divisor, out + result, adds);
}

inline unsigned ceil_divide(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

// The current stream of the current device.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Every kernel starts here.
template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream,
           const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "genkern: CUDA: ", cudaGetErrorString(error));
}

// Calls f with the walk as a constant.
template <class F>
void with_walk(Walk walk, F f) {
  switch (walk) {
    case Walk::kFlat:
      return f(std::integral_constant<Walk, Walk::kFlat>{});
    case Walk::kRows:
      return f(std::integral_constant<Walk, Walk::kRows>{});
    case Walk::kElements:
      return f(std::integral_constant<Walk, Walk::kElements>{});
  }
}

// How many threads and blocks serve a plan: blocks.x of them the samples, blocks.y a sample's
// slots.
struct Grid {
  dim3 threads{kThreads}, blocks;
  int64_t results = 1, blocks_a_result = 1;

  // Sets the plan's step as well.
  template <int kTensors>
  Grid(Plan<kTensors>& plan, bool by_sample, bool sums) {
    if (by_sample)
      while (threads.x > 1 && threads.x / 2 >= plan.slots) threads.x /= 2;
    threads.y = kThreads / threads.x;
    blocks.x = ceil_divide(plan.samples, threads.y);
    const int64_t passes = std::max<int64_t>(ceil_divide(plan.slots, threads.x), 1);
    if (!sums) {
      // 4096 blocks keep a GPU evenly busy; beyond, up to eight slots a thread pay for its start.
      blocks.y =
          std::min<int64_t>({passes, std::max<int64_t>(4096 / blocks.x, (passes + 7) / 8), 65535});
      plan.step = blocks.y * threads.x;
      return;
    }
    // Up to four passes of one block are quicker than a second launch. Beyond, 256 blocks keep a
    // GPU busy, eight slots a thread pay for the sum over a block, and more than 2048 blocks would
    // only lengthen the second launch.
    const int64_t busy = std::min<int64_t>(passes, 256 / blocks.x);
    const int64_t paid = std::min<int64_t>((passes + 7) / 8, 2048 / blocks.x);
    blocks.y = passes <= 4 ? 1 : std::max<int64_t>({busy, paid, 1});
    plan.step = blocks.y * threads.x;
    results = plan.result_by_sample ? plan.samples : 1;
    blocks_a_result = static_cast<int64_t>(blocks.y) * (plan.result_by_sample ? 1 : blocks.x);
  }

  // Of the second launch: a warp a sample, or a block for the one result.
  dim3 second_threads() const { return results > 1 ? dim3(32, kThreads / 32) : dim3(kThreads); }
  dim3 second_blocks() const { return ceil_divide(results, second_threads().y); }
};

struct Order {
  bool loop_repeats = false, by_sample = false;  // see Planner::build
};

// `like`: any tensor of the call; says where and on which stream. plan.result, if set, gets the
// sum.
template <class T, class Body>
void launch(Planner<Body::kTensors>& planner, const Body& body, const torch::stable::Tensor& like,
            Order order) {
  using Acc = typename Arithmetic<T>::type;
  Plan<Body::kTensors>& plan = planner.plan;
  const bool by_sample = plan.result_by_sample || (order.by_sample && planner.batch() > 0);
  const Walk walk = planner.build(order.loop_repeats, by_sample, Body::kBySample, kPackLanes<T>,
                                  kBlockElements<Acc>);
  if (plan.samples == 0 || (plan.slots + plan.tail == 0 && !plan.result)) return;

  const Grid grid(plan, by_sample, plan.result != nullptr);
  torch::stable::Tensor scratch;
  if (grid.blocks_a_result > 1) {
    const int64_t size[] = {grid.results * grid.blocks_a_result};
    scratch = torch::stable::new_empty(like, size, torch::headeronly::ScalarType::Double);
    plan.partials = static_cast<double*>(scratch.mutable_data_ptr());
  }
  const cudaStream_t stream = current_stream(like.get_device_index());
  with_walk(walk, [&](auto kind) {
    start(run<Body, T, kind.value>, grid.blocks, grid.threads, stream, plan, body);
  });
  if (!plan.partials) return;
  start(add_partials<Acc>, grid.second_blocks(), grid.second_threads(), stream, plan.partials,
        static_cast<Acc*>(plan.result), grid.results, grid.blocks_a_result, plan.divisor,
        plan.adds);
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
