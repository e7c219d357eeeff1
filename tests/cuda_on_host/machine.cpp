// Runs grids: a block after the other, and of a block each thread until it has to wait. Not
// instrumented by any sanitizer.
#include "machine.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <mutex>
#include <numeric>
#include <unordered_set>
#include <vector>

// AddressSanitizer, where it is there, has to know of stacks.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
}

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

Now now;

namespace {

constexpr int kMaxThreads = 1024, kWarp = 32;
constexpr size_t kPage = 4096, kStack = 64 * kPage;  // the lowest page is a guard

// ---- stacks

struct Fiber {
  void* jump[5];  // of __builtin_setjmp, which makes no system call
  const void* bottom;
  size_t size;
  void* fake_stack;
};

Fiber host;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;

__attribute__((noinline, noreturn)) void jump(Fiber& to) { __builtin_longjmp(to.jump, 1); }

__attribute__((noinline)) void leave(Fiber& from, Fiber& to) {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
  if (__builtin_setjmp(from.jump) == 0) jump(to);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void fiber_main();

__attribute__((noinline)) void enter(Fiber& fiber) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = const_cast<void*>(fiber.bottom);
  context.uc_stack.ss_size = fiber.size;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&host.fake_stack, fiber.bottom, fiber.size);
  if (__builtin_setjmp(host.jump) == 0) setcontext(&context);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
}

Fiber& new_fiber() {
  if (!now.stacks.size) {
    const size_t size = kMaxThreads * kStack;
    void* begin = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) throw std::bad_alloc();
    now.stacks = {reinterpret_cast<uintptr_t>(begin), size};
  }
  const uintptr_t bottom = now.stacks.begin + fibers.size() * kStack;
  mprotect(reinterpret_cast<void*>(bottom), kPage, PROT_NONE);
  fibers.push_back(std::make_unique<Fiber>());
  *fibers.back() = {{}, reinterpret_cast<void*>(bottom + kPage), kStack - kPage, nullptr};
  return *fibers.back();
}

// ---- a block

struct Thread {
  enum State { kReady, kWaits, kDone } state;
  dim3 index;
  Fiber* fiber;
  Site site;  // where it waits
};

struct Warp {
  unsigned present, arrived, mask, exchange;
  uint64_t words[2][kWarp];  // a fast lane may be one exchange ahead of a slow one
  Site site;
};

struct Block {
  int size = 0, started = 0, done = 0, at_barrier = 0;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kWarp];
  Site barrier;
} block;

Launch launch;
std::string error;
cudaError_t last_error = cudaSuccess;
std::string last_text;
std::mutex launching;
uint64_t runs = 0;

// The order in which threads start and go on, and blocks run.
uint64_t order_seed = 0;
std::vector<int> thread_order;

template <class Index>
std::vector<Index> make_order(size_t size) {
  std::vector<Index> order(size);
  std::iota(order.begin(), order.end(), Index(0));
  uint64_t state = order_seed;
  for (size_t i = size; order_seed && i > 1; --i) {
    // Knuth's MMIX generator.
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(order[i - 1], order[(state >> 33) % i]);
  }
  return order;
}

void select(int thread) {
  now.thread = thread;
  threadIdx = block.threads[thread].index;
}

void fiber_main() {
  Fiber* self = block.threads[now.thread].fiber;
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.size);
  for (;;) {
    // A thread that never waits leaves its stack to the next.
    for (;;) {
      now.running = true;
      launch.run(launch.call);
      now.running = false;
      block.threads[now.thread].state = Thread::kDone;
      ++block.done;
      if (block.started == block.size) break;
      select(thread_order[block.started++]);
      block.threads[now.thread].fiber = self;
    }
    idle.push_back(self);
    leave(*self, host);
  }
}

void wait(const Site& site) {
  Thread& self = block.threads[now.thread];
  self.state = Thread::kWaits;
  self.site = site;
  now.running = false;
  leave(*self.fiber, host);
  now.running = true;
}

std::string name(const Site& site) {
  const std::string file = site.file;
  return std::string(site.what) + " in " + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(site.line);
}
bool same(const Site& a, const Site& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}
std::string thread_name(int thread) { return "thread " + std::to_string(thread); }

// Why no thread can go on.
std::string divergence() {
  const auto first = std::find_if(block.threads, block.threads + block.size,
                                  [](const Thread& t) { return t.state == Thread::kWaits; });
  int waiting = 0;
  for (int i = 0; i < block.size; ++i) waiting += block.threads[i].state == Thread::kWaits;
  std::string text = "divergence: " + thread_name(static_cast<int>(first - block.threads)) +
                     " waits at " + name(first->site);
  for (int i = 0; i < block.size; ++i) {
    const Thread& other = block.threads[i];
    if (other.state == Thread::kDone) return text + ", " + thread_name(i) + " has returned";
    if (!same(other.site, first->site))
      return text + ", " + thread_name(i) + " at " + name(other.site);
  }
  return text + ", as do " + std::to_string(waiting - 1) + " others";
}

void run_block() {
  block.size = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  block.started = block.done = block.at_barrier = 0;
  now.barriers = 0;
  for (Warp& warp : block.warps) warp.present = warp.arrived = warp.exchange = 0;
  for (int i = 0; i < block.size; ++i) {
    const unsigned u = static_cast<unsigned>(i), row = u / blockDim.x;
    block.threads[i] = {
        Thread::kReady, {u % blockDim.x, row % blockDim.y, row / blockDim.y}, nullptr, {}};
    block.warps[i / kWarp].present |= 1u << i % kWarp;
  }
  // What a real block finds there is anything.
  std::memset(reinterpret_cast<void*>(now.shared.begin), 0xa5, now.shared.size);
  now.block_run = ++runs;
  while (block.started < block.size && error.empty()) {
    select(thread_order[block.started++]);
    if (idle.empty()) {
      Fiber& fiber = new_fiber();
      block.threads[now.thread].fiber = &fiber;
      enter(fiber);
    } else {
      Fiber& fiber = *idle.back();
      idle.pop_back();
      block.threads[now.thread].fiber = &fiber;
      leave(host, fiber);
    }
  }
  while (block.done < block.size && error.empty()) {
    bool stuck = true;
    for (const int i : thread_order) {
      if (block.threads[i].state != Thread::kReady) continue;
      stuck = false;
      select(i);
      leave(host, *block.threads[i].fiber);
      if (!error.empty()) return;
    }
    if (stuck) error = divergence();
  }
}

// The thread-local data of the library that this is part of, for the calling thread of the host.
thread_local char in_shared_memory;
Range find_shared_memory() {
  volatile char* touch = &in_shared_memory;  // which makes the data exist
  struct Search {
    uintptr_t inside;
    Range found;
  } search{reinterpret_cast<uintptr_t>(touch), {}};
  const auto look = [](dl_phdr_info* info, size_t, void* argument) {
    auto& search = *static_cast<Search*>(argument);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const Range range{reinterpret_cast<uintptr_t>(info->dlpi_tls_data),
                        info->dlpi_phdr[i].p_memsz};
      if (info->dlpi_phdr[i].p_type == PT_TLS && range.has(search.inside)) search.found = range;
    }
    return 0;
  };
  dl_iterate_phdr(look, &search);
  return search.found;
}

// Notes each kernel that is launched in a file of the folder that CUDA_ON_HOST_KERNELS names: the
// library, and the kernel's address there.
void note(const void* kernel) {
  static const char* const folder = std::getenv("CUDA_ON_HOST_KERNELS");
  static std::unordered_set<const void*> noted;
  Dl_info info{};
  if (!folder || !noted.insert(kernel).second || !dladdr(kernel, &info)) return;
  std::ofstream file(std::string(folder) + "/" + std::to_string(getpid()), std::ios::app);
  file << info.dli_fname << ' '
       << static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase) << '\n';
}

bool is_possible(const dim3& grid, const dim3& threads) {
  const uint64_t size = uint64_t{1} * threads.x * threads.y * threads.z;
  return size >= 1 && size <= kMaxThreads && threads.z <= 64 && grid.x >= 1 && grid.y >= 1 &&
         grid.z >= 1 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

std::string text_of(const dim3& d) {
  return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
}

}  // namespace

void fail(const std::string& text) {
  error = text + ", " + thread_name(now.thread) + " of block " + std::to_string(now.block);
  now.running = false;
  leave(*block.threads[now.thread].fiber, host);
  __builtin_unreachable();
}

cudaError_t run_grid(const cudaLaunchConfig_t& config, const Launch& what) {
  const std::lock_guard<std::mutex> lock(launching);
  static pthread_t owner;
  if (!now.shared.size || !pthread_equal(owner, pthread_self())) {
    now.shared = find_shared_memory();
    owner = pthread_self();
  }
  if (!is_possible(config.gridDim, config.blockDim)) {
    last_text = "impossible launch: " + text_of(config.gridDim) + " blocks of " +
                text_of(config.blockDim) + " threads";
    return last_error = cudaErrorInvalidConfiguration;
  }
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  launch = what;
  note(what.kernel);
  error.clear();
  now.launch_run = ++runs;
  now.arguments = {reinterpret_cast<uintptr_t>(what.call), what.size};
  thread_order = make_order<int>(blockDim.x * blockDim.y * blockDim.z);
  const uint64_t rows = uint64_t{1} * gridDim.y * gridDim.z;
  for (const uint64_t i : make_order<uint64_t>(gridDim.x * rows)) {
    now.block = static_cast<uint32_t>(i);
    const uint64_t row = i / gridDim.x;
    blockIdx = dim3(static_cast<unsigned>(i % gridDim.x), static_cast<unsigned>(row % gridDim.y),
                    static_cast<unsigned>(row / gridDim.y));
    run_block();
    if (error.empty()) continue;
    // Threads that did not end keep their stacks; the next launch makes new ones.
    for (auto& fiber : fibers) fiber.release();
    fibers.clear();
    idle.clear();
    now.stacks = {};
    last_text = error;
    return last_error = cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

void synchronize_block(const Site& site) {
  if (block.at_barrier == 0) block.barrier = site;
  if (!same(block.barrier, site))
    fail("divergence: a thread waits at " + name(block.barrier) + ", this at " + name(site));
  if (++block.at_barrier < block.size) return wait(site);
  block.at_barrier = 0;
  ++now.barriers;
  for (int i = 0; i < block.size; ++i) block.threads[i].state = Thread::kReady;
}

#if !defined(CUDA_ON_HOST_CHECKED)
void atomic_access(const void*, size_t, const void*) {}
#endif

int lane() { return now.thread % kWarp; }

uint64_t shuffle(unsigned mask, uint64_t word, int source, const Site& site) {
  const int first = now.thread / kWarp * kWarp;
  Warp& warp = block.warps[now.thread / kWarp];
  if (!(mask >> lane() & 1)) fail("divergence: " + name(site) + " by a thread not in its mask");
  if (!warp.arrived) {
    warp.site = site;
    warp.mask = mask & warp.present;
  }
  if (!same(warp.site, site) || warp.mask != (mask & warp.present))
    fail("divergence: a lane waits at " + name(warp.site) + ", this at " + name(site));
  const uint64_t* words = warp.words[warp.exchange & 1];
  warp.words[warp.exchange & 1][lane()] = word;
  warp.arrived |= 1u << lane();
  if (warp.arrived != warp.mask) {
    wait(site);
  } else {
    warp.arrived = 0;
    ++warp.exchange;
    for (int i = 0; i < kWarp; ++i)
      if (warp.mask >> i & 1) block.threads[first + i].state = Thread::kReady;
  }
  if (!(mask & warp.present & 1u << source))
    fail("divergence: " + name(site) + " reads lane " + std::to_string(source) +
         ", which does not take part");
  return words[source];
}

}  // namespace cuda_on_host

cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_on_host::last_error;
  cuda_on_host::last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : cuda_on_host::last_text.c_str();
}

extern "C" {
// 0: threads and blocks in the order of their indices; else in an order of this seed's.
__attribute__((visibility("default"))) void cuda_on_host_set_order(uint64_t seed) {
  cuda_on_host::order_seed = seed;
}
// An assertion of a kernel. -Bsymbolic prefers this to the C library's.
void __assert_fail(const char* assertion, const char* file, unsigned line, const char*) noexcept {
  const std::string text =
      "assertion failed: " + cuda_on_host::name({assertion, file, static_cast<int>(line)});
  if (cuda_on_host::now.running) cuda_on_host::fail(text);
  std::fprintf(stderr, "%s\n", text.c_str());
  std::abort();
}
}
