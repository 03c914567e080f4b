// Runs CUDA kernels on a CPU, one block after the other: the threads of a block are
// fibers of one thread, which change places only where they wait for each other. For
// tests of what kernels compute; it cannot show races, nor how fast a GPU would be.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define SHARED(name) unsigned char* name = on_cpu::shared
#define STREAM
#define ON_STREAM
#define LAUNCH(kernel, grid, block, bytes, stream, ...) \
  on_cpu::launch(grid, block, bytes, [=]() mutable { kernel(__VA_ARGS__); })

struct dim3 {
  int x, y, z;
  dim3(int64_t x = 1, int64_t y = 1, int64_t z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
  unsigned x, y, z, w;
};

namespace on_cpu {

constexpr int kStack = 64 * 1024, kThreads = 1024, kShared = 227 * 1024;

struct Barrier {
  int waiting = 0, turn = 0;
};

struct Fiber {
  dim3 index;
  jmp_buf at;
  ucontext_t start;
  bool begun = false, done = false;
};

inline unsigned char* shared = nullptr;
inline dim3 grid_size, block_size, block_index;
inline Fiber fibers[kThreads];
inline int running, live;
inline jmp_buf scheduler;
inline ucontext_t home;
inline const std::function<void()>* body;
inline Barrier of_block, of_warp[kThreads / 32];
inline unsigned values[kThreads], any_of_block;

inline void yield() {
  if (!_setjmp(fibers[running].at)) _longjmp(scheduler, 1);
}

inline void enter() {
  (*body)();
  fibers[running].done = true;
  _longjmp(scheduler, 1);
}

// Until `size` fibers have come here.
inline void wait(Barrier& barrier, int size) {
  int turn = barrier.turn;
  if (++barrier.waiting == size) {
    barrier.waiting = 0;
    ++barrier.turn;
  } else {
    while (barrier.turn == turn) yield();
  }
}

inline void launch(dim3 grid, dim3 block, int bytes, const std::function<void()>& run) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> one(mutex);
  static std::vector<char> stacks(static_cast<size_t>(kStack) * kThreads);
  static std::vector<uint64_t> memory(kShared / 8);
  int threads = block.x * block.y * block.z;
  if (threads > kThreads || bytes > kShared || threads <= 0) std::abort();
  if (grid.x <= 0 || grid.y <= 0 || grid.y > 65535 || grid.z > 65535) std::abort();
  shared = reinterpret_cast<unsigned char*>(memory.data());
  grid_size = grid;
  block_size = block;
  body = &run;
  for (int64_t at = 0; at < static_cast<int64_t>(grid.x) * grid.y * grid.z; ++at) {
    block_index = dim3(at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y);
    std::memset(shared, 0xa5, bytes);  // what a block finds there is not to be relied on
    for (int k = 0; k < threads; ++k) {
      Fiber& fiber = fibers[k];
      fiber.index = dim3(k % block.x, k / block.x % block.y, k / block.x / block.y);
      fiber.begun = fiber.done = false;
    }
    of_block = Barrier();
    for (auto& barrier : of_warp) barrier = Barrier();
    for (volatile int left = threads; left > 0;) {
      left = 0;
      for (volatile int k = 0; k < threads; k = k + 1) {
        Fiber& fiber = fibers[k];
        if (fiber.done) continue;
        running = k;
        if (!_setjmp(scheduler)) {
          if (fiber.begun) _longjmp(fiber.at, 1);
          fiber.begun = true;
          getcontext(&fiber.start);
          fiber.start.uc_stack.ss_sp = stacks.data() + static_cast<size_t>(k) * kStack;
          fiber.start.uc_stack.ss_size = kStack;
          makecontext(&fiber.start, enter, 0);
          setcontext(&fiber.start);
        }
        if (!fibers[k].done) left = left + 1;
      }
    }
  }
}

inline int lane() { return running % 32; }

// What all lanes of a warp hand in. All of them have to come.
inline const unsigned* exchange(unsigned value) {
  Barrier& barrier = of_warp[running / 32];
  wait(barrier, 32);  // until nobody reads what was handed in before
  values[running] = value;
  wait(barrier, 32);
  return values + running / 32 * 32;
}

}  // namespace on_cpu

#define threadIdx (on_cpu::fibers[on_cpu::running].index)
#define blockIdx on_cpu::block_index
#define blockDim on_cpu::block_size

inline void __syncthreads() {
  dim3 size = on_cpu::block_size;
  on_cpu::wait(on_cpu::of_block, size.x * size.y * size.z);
}
inline int __syncthreads_or(int value) {
  __syncthreads();
  on_cpu::any_of_block = 0;
  __syncthreads();
  on_cpu::any_of_block |= value != 0;
  __syncthreads();
  return on_cpu::any_of_block;
}
inline void __syncwarp() { on_cpu::exchange(0); }
inline unsigned __ballot_sync(unsigned, int value) {
  const unsigned* all = on_cpu::exchange(value != 0);
  unsigned found = 0;
  for (int k = 0; k < 32; ++k) found |= all[k] << k;
  return found;
}
inline int __all_sync(unsigned mask, int value) {
  return __ballot_sync(mask, value) == 0xffffffffu;
}
inline unsigned __match_any_sync(unsigned, unsigned value) {
  const unsigned* all = on_cpu::exchange(value);
  unsigned found = 0;
  for (int k = 0; k < 32; ++k) found |= static_cast<unsigned>(all[k] == value) << k;
  return found;
}
inline int __shfl_sync(unsigned, int value, int from) {
  return on_cpu::exchange(value)[from];
}
inline int __shfl_up_sync(unsigned, int value, int by) {
  int lane = on_cpu::lane();
  const unsigned* all = on_cpu::exchange(value);
  return lane >= by ? all[lane - by] : value;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int atomicAdd(int* to, int value) {
  int before = *to;
  *to += value;
  return before;
}

using cudaError_t = int;
constexpr int cudaSuccess = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}
inline void cudaDeviceGetAttribute(int* value, int, int) { *value = on_cpu::kShared; }
#define cudaMemsetAsync(to, value, bytes, stream) std::memset(to, value, bytes)
