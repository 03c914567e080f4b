// The event engine for CUDA: every synapse acts at most once.
//
// A dense layer is a 1×1 convolution of a 1×1 image. Axes: B images, H W places, I
// inputs, O outputs, T steps, P reference pulses, K = kh·kw·I rows of a window, M windows
// of a pooling window. A cell is a place of an image behind the pooling. Images come
// padded with silent inputs, so that no window reaches beyond them.
//
// No result depends on the order in which threads run: floats are added by one thread in
// a fixed order, and only integers atomically.

#include <cmath>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

#ifdef DS4NN_ON_CPU  // tests/cuda_on_cpu.h runs the same kernels without a GPU
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime.h>
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define LAUNCH(kernel, grid, block, bytes, stream, ...) \
  kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__)
#define STREAM cudaStream_t stream,
#define ON_STREAM .Ctx<ffi::PlatformStream<cudaStream_t>>()
#endif

namespace ffi = xla::ffi;

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// ---- What is static about a call ------------------------------------------------------

// The words of a plan, in the order of `cuda.Plan`.
struct Plan {
  int images, height, width, inputs;   // as the layer's input is
  int out_height, out_width, outputs;  // behind the pooling
  int rows, columns, row_stride, column_stride, top, left;
  int pool_rows, pool_columns;
  int padded_height, padded_width;
  int pulses, steps;
  int flag;    // forward: peaks are asked for; backward: silent inputs take part
  int counts;  // rows of spike counts asked for: 0, 1 or 2

  explicit Plan(const int64_t* words) {
    int* to = &images;
    for (int k = 0; k < 21; ++k) to[k] = static_cast<int>(words[k]);
  }
  __host__ __device__ int places() const { return out_height * out_width; }
  __host__ __device__ int cells() const { return images * places(); }
  __host__ __device__ int pool_size() const { return pool_rows * pool_columns; }
  __host__ __device__ int size() const { return rows * columns * inputs; }
  __host__ __device__ int image() const {
    return padded_height * padded_width * inputs;
  }
  // Where row k of a window lies, from the window's corner.
  __host__ __device__ int offset(int k) const {
    int run = columns * inputs, row = k / run;
    return row * padded_width * inputs + k - row * run;
  }
  __host__ __device__ int pulse(int p) const {
    return p * steps / pulses;  // below 2^30, see `ds4nn_scratch`
  }
};

__host__ __device__ int up(int64_t n, int64_t by) {
  return static_cast<int>((n + by - 1) / by);
}
__host__ __device__ int whole(int64_t n, int64_t by) {
  return static_cast<int>((n + by - 1) / by * by);
}
template <typename T>
T within(T least, T value, T most) {
  return value < least ? least : value > most ? most : value;
}

// ---- Forward --------------------------------------------------------------------------

// An event is a word: the row of weights to add, when, and whether its step ends with it.
constexpr int kRowBits = 21, kStepBits = 10;
constexpr unsigned kLast = 1u << 31;
constexpr unsigned kRow = (1u << kRowBits) - 1;

constexpr int kRanked = 64;   // up to so many events, ranking beats counting
constexpr int kGroup = 8;     // weights on their way at once
constexpr int kChunk = 128;   // rows of weights that a block fetches together

__host__ __device__ unsigned event(int step, int row) {
  return (static_cast<unsigned>(step) << kRowBits) | static_cast<unsigned>(row);
}
__host__ __device__ int step_of(unsigned event) {
  return static_cast<int>((event & ~kLast) >> kRowBits);
}

// How the forward pass is laid out: a block computes `lanes` outputs of a place, behind
// the pooling, with `threads` threads for each of `at_once` windows.
struct Layout {
  int lanes, threads, at_once;
  int events;     // K + P, in whole groups
  int segments;   // parts of a window that are counted apart; 0: ranked
  int window;     // bytes of a window: events, steps, counts, beginnings
  int spikes;     // offset of the responses in the pooling window
  int by_step;    // offset of the spikes of each step
  int fetched;    // offset of the rows that a block fetches together
  int together;   // whether it does
  int bytes;

  explicit Layout(const Plan& plan) {
    int count = plan.size() + plan.pulses, pool_size = plan.pool_size();
    lanes = whole(within(1, plan.outputs, 128), kWarp);
    threads = lanes;
    together = pool_size == 1 && plan.outputs <= kWarp && count > 256;
    if (count > kRanked) {
      int most = pool_size > 1 ? 256 : 512;
      threads = within(together ? 256 : lanes, whole(up(count, 16), kWarp), most);
    }
    at_once = within(1, 512 / threads, pool_size);
    events = whole(count, kGroup);
    segments = count > kRanked ? threads / kWarp : 0;
    int words = events + segments * plan.steps + plan.steps + 1;
    window = whole(4 * static_cast<int64_t>(words) + 2 * events, 16);
    spikes = at_once * window;
    by_step = spikes + (at_once > 1 ? 16 * at_once * lanes : 0);
    fetched = whole(by_step + 4 * plan.counts * plan.steps, 16);
    bytes = fetched + (together ? 2 * 4 * kChunk * plan.outputs : 0);
  }
};

// Events of a window in the order of their steps, those of a step in row order; how many.
// All threads of the block take part; `x` is that of a thread within its window's.
__device__ int sorted(const Plan& plan, const Layout& layout, const float* window,
                      int x, unsigned char* memory, unsigned*& order) {
  order = reinterpret_cast<unsigned*>(memory);
  int* count = reinterpret_cast<int*>(order + layout.events);
  int* begin = count + layout.segments * plan.steps;  // of each step, and the end
  uint16_t* steps = reinterpret_cast<uint16_t*>(begin + plan.steps + 1);
  int size = plan.size(), all = size + plan.pulses, silent = plan.steps;
  auto step_at = [&](int k) {
    if (window == nullptr) return silent;
    if (k >= size) return plan.pulse(k - size);
    float t = window[plan.offset(k)];
    return t >= 0 && t < silent ? static_cast<int>(t) : silent;
  };

  if (layout.segments == 0) {
    for (int k = x; k < all; k += layout.threads) steps[k] = step_at(k);
    __syncthreads();
    for (int k = x; k < all; k += layout.threads) {
      int t = steps[k], rank = 0, found = 0;
      bool last = true;
      for (int i = 0; i < all; ++i) {
        int other = steps[i];
        found += other < silent;
        rank += other < t || (other == t && i < k);
        last = last && !(other == t && i > k);
      }
      if (t < silent) order[rank] = event(t, k) | (last ? kLast : 0);
      if (k == 0) begin[silent] = found;
    }
    __syncthreads();
    return begin[silent];
  }

  int lane = x % kWarp, segment = x / kWarp;
  int part = (all + layout.threads - 1) / layout.threads * kWarp;
  int first = segment * part, end = first + part < all ? first + part : all;
  for (int k = x; k < layout.segments * silent; k += layout.threads) count[k] = 0;
  __syncthreads();
  int* own = count + segment * silent;
  for (int k = first + lane; k < end; k += kWarp) {
    int t = steps[k] = step_at(k);
    if (t < silent) atomicAdd(own + t, 1);
  }
  __syncthreads();
  for (int t = x; t < silent; t += layout.threads) {
    int sum = 0;
    for (int s = 0; s < layout.segments; ++s) {
      int here = count[s * silent + t];
      count[s * silent + t] = sum;
      sum += here;
    }
    begin[t] = sum;
  }
  __syncthreads();
  if (segment == 0) {  // sums over the steps before
    int before = 0;
    for (int start = 0; start < silent; start += kWarp) {
      int t = start + lane, here = t < silent ? begin[t] : 0, sum = here;
      for (int by = 1; by < kWarp; by *= 2) {
        int other = __shfl_up_sync(kAll, sum, by);
        if (lane >= by) sum += other;
      }
      if (t < silent) begin[t] = before + sum - here;
      before += __shfl_sync(kAll, sum, kWarp - 1);
    }
    if (lane == 0) begin[silent] = before;
  }
  __syncthreads();
  for (int start = first; start < end; start += kWarp) {
    int k = start + lane, t = k < end ? steps[k] : silent;
    unsigned same = __match_any_sync(kAll, t);
    int rank = __popc(same & ((1u << lane) - 1));
    if (t < silent) order[begin[t] + own[t] + rank] = event(t, k);
    __syncwarp();
    if (t < silent && rank == 0) own[t] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  for (int t = x; t < silent; t += layout.threads) {
    if (begin[t] < begin[t + 1]) order[begin[t + 1] - 1] |= kLast;
  }
  __syncthreads();
  return begin[silent];
}

// A neuron that integrates events.
template <bool peaks>
struct Neuron {
  float v = 0, threshold, silent, spike, peak, end = 0;

  // `at_once`: whether an event arrives at step 0. V(0) = 0 counts as a peak if not.
  __device__ Neuron(const Plan& plan, float threshold, bool at_once)
      : threshold(threshold), silent(plan.steps), spike(silent),
        peak(at_once ? -INFINITY : 0) {}
  __device__ bool waits() const { return spike == silent; }
  __device__ void add(unsigned event, float weight) {
    v += weight;
    if (!(event & kLast) || !waits()) return;
    float t = step_of(event);
    if (peaks && v > peak) {
      peak = v;
      end = t;
    }
    if (v >= threshold) spike = t;
  }
};

template <bool peaks>
__global__ void __launch_bounds__(512)
    forward(Plan plan, Layout layout, const float* __restrict__ times,
            const float* __restrict__ weights, float* spike, float* potential,
            float* ends, float* argmin, int* counts) {
  SHARED(memory);
  int x = threadIdx.x, y = threadIdx.y, silent = plan.steps;
  int thread = y * layout.threads + x, threads = layout.at_once * layout.threads;
  int* by_step = reinterpret_cast<int*>(memory + layout.by_step);
  for (int k = thread; k < plan.counts * silent; k += threads) by_step[k] = 0;

  int cell = blockIdx.x, places = plan.places(), b = cell / places;
  int place = cell - b * places, row = place / plan.out_width;
  int column = place - row * plan.out_width;
  int o = blockIdx.y * layout.lanes + x;
  bool computes = x < layout.lanes && o < plan.outputs;
  const float* own = weights + (o < plan.outputs ? o : plan.outputs - 1);
  // Thresholds are the last row of the weights.
  float threshold = own[(plan.size() + plan.pulses) * plan.outputs];
  float best = silent, best_peak = 0, best_end = 0;
  int best_argmin = -1;

  for (int start = 0; start < plan.pool_size(); start += layout.at_once) {
    int m = start + y;
    const float* window = nullptr;
    if (m < plan.pool_size()) {
      int down = m / plan.pool_columns, right = m - down * plan.pool_columns;
      int top = (row * plan.pool_rows + down) * plan.row_stride;
      int left = (column * plan.pool_columns + right) * plan.column_stride;
      window = times + static_cast<int64_t>(b) * plan.image() +
               (top * plan.padded_width + left) * plan.inputs;
    }
    unsigned* order;
    int n = sorted(plan, layout, window, x, memory + y * layout.window, order);
    Neuron<peaks> neuron(plan, threshold, n > 0 && step_of(order[0]) == 0);
    if (layout.together) {
      // The first warp adds a chunk while the others fetch the next one.
      float* fetched = reinterpret_cast<float*>(memory + layout.fetched);
      int lane = x % kWarp, chunk = kChunk * plan.outputs;
      for (int at = 0, odd = 1; at - kChunk < n; at += kChunk, odd ^= 1) {
        bool done = true;
        if (x >= kWarp || at == 0) {
          int warps = layout.threads / kWarp - (at > 0), warp = x / kWarp - (at > 0);
          int many = n - at < kChunk ? n - at : kChunk;
          float* to = fetched + (odd ^ 1) * chunk + lane;
          if (lane < plan.outputs) {
#pragma unroll 4
            for (int e = warp; e < many; e += warps) {
              unsigned from = (order[at + e] & kRow) * plan.outputs;
              to[e * plan.outputs] = weights[from + lane];
            }
          }
          done = at > 0;
        }
        if (x < kWarp && at > 0) {
          const float* column = fetched + odd * chunk + (computes ? x : 0);
          int from = at - kChunk, many = n - from < kChunk ? n - from : kChunk;
#pragma unroll 8
          for (int e = 0; e < many; ++e) {
            neuron.add(order[from + e], column[e * plan.outputs]);
          }
          done = !computes || !neuron.waits();
        }
        if (!__syncthreads_or(!done)) break;
      }
    } else if (x < layout.lanes) {
      for (int e = 0; e < n; e += kGroup) {
        unsigned events[kGroup];
        float added[kGroup];
#pragma unroll
        for (int k = 0; k < kGroup; k += 4) {
          uint4 four = *reinterpret_cast<const uint4*>(order + e + k);
          events[k] = four.x, events[k + 1] = four.y;
          events[k + 2] = four.z, events[k + 3] = four.w;
        }
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          bool there = e + k < n;
          unsigned from = there ? events[k] & kRow : 0;
          added[k] = there ? own[from * plan.outputs] : 0.0f;
          events[k] = there ? events[k] : 0;
        }
#pragma unroll
        for (int k = 0; k < kGroup; ++k) neuron.add(events[k], added[k]);
        if (__all_sync(kAll, !computes || !neuron.waits())) break;
      }
    }
    if (computes && m < plan.pool_size()) {
      if (plan.counts && !neuron.waits()) {
        atomicAdd(by_step + static_cast<int>(neuron.spike), 1);
      }
      if (best_argmin < 0 || neuron.spike < best) {
        best = neuron.spike;
        best_peak = neuron.peak;
        best_end = neuron.end;
        best_argmin = m;
      }
    }
    if (start + layout.at_once < plan.pool_size()) __syncthreads();
  }

  if (layout.at_once > 1) {  // of the first to fire the first in row order
    float* spikes = reinterpret_cast<float*>(memory + layout.spikes);
    int all = layout.at_once * layout.lanes, at = y * layout.lanes + x;
    int* argmins = reinterpret_cast<int*>(spikes + 3 * all);
    if (x < layout.lanes) {
      spikes[at] = best;
      spikes[all + at] = best_peak;
      spikes[2 * all + at] = best_end;
      argmins[at] = best_argmin;
    }
    __syncthreads();
    if (computes && y == 0) {
      for (int other = 1; other < layout.at_once; ++other) {
        at = other * layout.lanes + x;
        float t = spikes[at];
        if (t < best || (t == best && argmins[at] < best_argmin)) {
          best = t;
          best_peak = spikes[all + at];
          best_end = spikes[2 * all + at];
          best_argmin = argmins[at];
        }
      }
    }
  }
  if (computes && y == 0) {
    int64_t at = static_cast<int64_t>(cell) * plan.outputs + o;
    spike[at] = best;
    if (peaks) {
      potential[at] = best_peak;
      ends[at] = best_end;
    }
    if (plan.pool_size() > 1) argmin[at] = best_argmin;
    if (plan.counts > 1 && best < silent) {
      atomicAdd(by_step + silent + static_cast<int>(best), 1);
    }
  }
  if (plan.counts) {
    __syncthreads();
    int* to = counts + static_cast<int64_t>(b) * plan.counts * silent;
    for (int k = thread; k < plan.counts * silent; k += threads) {
      if (by_step[k]) atomicAdd(to + k, by_step[k]);
    }
  }
}

// ---- Backward: weights ----------------------------------------------------------------

// A neuron with an error: its error and its window.
struct __align__(16) ErrorEntry {
  float delta, end;
  int at;     // weights: the window's corner in the padded images; times: the output
  int where;  // times: row and column of the corner, 16 bits each
};

// Where the m-th window of a pooling window begins, from the corner of its first.
__device__ int corner(const Plan& plan, int row, int column, int m) {
  int down = m / plan.pool_columns, right = m - down * plan.pool_columns;
  int top = (row * plan.pool_rows + down) * plan.row_stride;
  int left = (column * plan.pool_columns + right) * plan.column_stride;
  return (top * plan.padded_width + left) * plan.inputs;
}

// Sums over the cells are taken in parts, whose number depends on shapes alone.
struct Parts {
  int few;     // rows of weights whose gradient is summed neuron by neuron, pulses included
  int listed;  // whether a window's rows are active by lists
  int splits, cells;          // of the lists, and cells of a split
  int few_splits, few_cells;  // of the others
  int64_t entries, lengths, sums, few_sums, bytes;  // offsets

  explicit Parts(const Plan& plan) {
    int64_t all = plan.cells(), size = plan.size(), outputs = plan.outputs;
    listed = size > kRanked;
    few = static_cast<int>((listed ? 0 : size) + plan.pulses);
    int64_t most = (int64_t{1} << 22) / (size * outputs);
    cells = up(all, within<int64_t>(1, most < all / 64 ? most : all / 64, 32));
    splits = up(all, cells);
    few_cells = up(all, within<int64_t>(1, all / 64, 128));
    few_splits = up(all, few_cells);
    int64_t lists = listed ? splits * outputs : 0;
    entries = 0;
    lengths = entries + lists * cells * 16;
    sums = lengths + lists * 4;
    few_sums = sums + lists * size * 4;
    bytes = few_sums + static_cast<int64_t>(few_splits) * few * outputs * 4;
  }
};

// Lists the neurons of every output that have an error, split by split.
__global__ void list_by_output(Plan plan, Parts parts, const float* __restrict__ ends,
                               const float* __restrict__ delta,
                               const float* __restrict__ argmin, ErrorEntry* entries,
                               int* lengths) {
  int o = blockIdx.x * blockDim.x + threadIdx.x;
  int split = blockIdx.y * blockDim.y + threadIdx.y;
  if (o >= plan.outputs || split >= parts.splits) return;
  int first = split * parts.cells, end = first + parts.cells, places = plan.places();
  if (end > plan.cells()) end = plan.cells();
  int list = split * plan.outputs + o, n = 0;
  ErrorEntry* to = entries + static_cast<int64_t>(list) * parts.cells;
#pragma unroll 4
  for (int cell = first; cell < end; ++cell) {
    int64_t from = static_cast<int64_t>(cell) * plan.outputs + o;
    float error = delta[from];
    if (error == 0) continue;
    int b = cell / places, place = cell - b * places, row = place / plan.out_width;
    int column = place - row * plan.out_width;
    int m = plan.pool_size() > 1 ? static_cast<int>(argmin[from]) : 0;
    float limit = ends[from], last = plan.steps - 1;
    to[n++] = {error, limit < last ? limit : last,
               b * plan.image() + corner(plan, row, column, m), 0};
  }
  lengths[list] = n;
}

constexpr int kRows = 4;  // of a window, for each thread

// sums[split, o, k] −= δ of the neurons with row k up to their end. A thread: rows of one o.
__global__ void __launch_bounds__(256)
    scatter_by_list(Plan plan, Parts parts, const float* __restrict__ times,
                  const ErrorEntry* __restrict__ entries, const int* __restrict__ lengths,
                  float* sums) {
  int size = plan.size(), list = blockIdx.z * plan.outputs + blockIdx.y;
  int first = blockIdx.x * kRows * blockDim.x + threadIdx.x;
  const ErrorEntry* from = entries + static_cast<int64_t>(list) * parts.cells;
  int n = lengths[list], offset[kRows];
  float sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    int k = first + r * blockDim.x;
    offset[r] = k < size ? plan.offset(k) : 0;
    sum[r] = 0;
  }
#pragma unroll 4
  for (int e = 0; e < n; ++e) {
    ErrorEntry entry = from[e];
    const float* window = times + entry.at;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (window[offset[r]] <= entry.end) sum[r] -= entry.delta;
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    int k = first + r * blockDim.x;
    if (k < size) sums[static_cast<int64_t>(list) * size + k] = sum[r];
  }
}

// d_kernel[k, o] = Σ over the splits of sums[split, o, k].
__global__ void collect_lists(Plan plan, Parts parts, const float* __restrict__ sums,
                              float* d_kernel) {
  int size = plan.size(), k = blockIdx.x * blockDim.x + threadIdx.x, o = blockIdx.y;
  if (k >= size) return;
  float sum = 0;
  for (int split = 0; split < parts.splits; ++split) {
    sum += sums[(static_cast<int64_t>(split) * plan.outputs + o) * size + k];
  }
  d_kernel[static_cast<int64_t>(k) * plan.outputs + o] = sum;
}

// As by list, for few rows: those of a small window, then the pulses.
// sums[split, row, o]; a thread has one row of an output.
__global__ void scatter_few(Plan plan, Parts parts, const float* __restrict__ times,
                          const float* __restrict__ ends,
                          const float* __restrict__ delta,
                          const float* __restrict__ argmin, float* sums) {
  int o = blockIdx.x * blockDim.x + threadIdx.x;
  int r = blockIdx.y * blockDim.y + threadIdx.y, split = blockIdx.z;
  if (o >= plan.outputs || r >= parts.few) return;
  int p = r - (parts.few - plan.pulses);
  float pulse = p < 0 ? 0 : plan.pulse(p), last = plan.steps - 1, sum = 0;
  int offset = p < 0 ? plan.offset(r) : 0;
  int first = split * parts.few_cells, end = first + parts.few_cells;
  if (end > plan.cells()) end = plan.cells();
  int b = first / plan.places(), place = first - b * plan.places();
  int row = place / plan.out_width, column = place - row * plan.out_width;
#pragma unroll 4
  for (int cell = first; cell < end; ++cell) {
    int64_t from = static_cast<int64_t>(cell) * plan.outputs + o;
    float error = delta[from];
    if (error != 0) {
      float t = pulse;
      if (p < 0) {
        int m = plan.pool_size() > 1 ? static_cast<int>(argmin[from]) : 0;
        t = times[b * plan.image() + corner(plan, row, column, m) + offset];
      }
      float limit = ends[from];
      if (t <= (limit < last ? limit : last)) sum -= error;
    }
    if (++column == plan.out_width) {
      column = 0;
      if (++row == plan.out_height) {
        row = 0;
        ++b;
      }
    }
  }
  sums[(static_cast<int64_t>(split) * parts.few + r) * plan.outputs + o] = sum;
}

// Σ over the splits of sums[split, row, o], to d_kernel and d_pulses.
__global__ void collect_few(Plan plan, Parts parts, const float* __restrict__ sums,
                            float* d_kernel, float* d_pulses) {
  int all = parts.few * plan.outputs, at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= all) return;
  float sum = 0;
#pragma unroll 8
  for (int split = 0; split < parts.few_splits; ++split) {
    sum += sums[static_cast<int64_t>(split) * all + at];
  }
  int pulses = (parts.few - plan.pulses) * plan.outputs;
  if (at < pulses) {
    d_kernel[at] = sum;
  } else {
    d_pulses[at - pulses] = sum;
  }
}

// ---- Backward: spike times ------------------------------------------------------------

// Lists the neurons of every cell that have an error. A warp has a cell.
__global__ void list_by_cell(Plan plan, const float* __restrict__ ends,
                             const float* __restrict__ delta,
                             const float* __restrict__ argmin, ErrorEntry* entries,
                             int* lengths) {
  int lane = threadIdx.x, cell = blockIdx.x * blockDim.y + threadIdx.y, n = 0;
  if (cell >= plan.cells()) return;  // a warp as a whole
  int place = cell % plan.places(), row = place / plan.out_width;
  int column = place - row * plan.out_width;
  float last = plan.steps - 1;
  int64_t all = static_cast<int64_t>(cell) * plan.outputs;
  for (int start = 0; start < plan.outputs; start += kWarp) {
    int o = start + lane;
    float error = o < plan.outputs ? delta[all + o] : 0;
    unsigned active = __ballot_sync(kAll, error != 0);
    if (error != 0) {
      int m = plan.pool_size() > 1 ? static_cast<int>(argmin[all + o]) : 0;
      int down = m / plan.pool_columns, right = m - down * plan.pool_columns;
      int top = (row * plan.pool_rows + down) * plan.row_stride;
      int left = (column * plan.pool_columns + right) * plan.column_stride;
      float limit = ends[all + o];
      entries[all + n + __popc(active & ((1u << lane) - 1))] = {
          error, limit < last ? limit : last, o * plan.size(), top << 16 | left};
    }
    n += __popc(active);
  }
  if (lane == 0) lengths[cell] = n;
}

// d_t = Σ δ·w over the neurons whose end is not before the input. A thread has `many`
// inputs of a pixel, 32 apart; the lanes of a warp have neighbours. weights: [O, K].
template <int many>
__global__ void __launch_bounds__(128, 12)
    scatter_times(Plan plan, const float* __restrict__ times,
                const float* __restrict__ weights, const ErrorEntry* __restrict__ entries,
                const int* __restrict__ lengths, float* d_times) {
  int inputs = plan.inputs;
  int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  int64_t first = many == 1 ? thread : thread / kWarp * (kWarp * many) + thread % kWarp;
  int64_t all = static_cast<int64_t>(plan.images) * plan.height * plan.width * inputs;
  if (first >= all) return;
  int pixel = static_cast<int>(first / inputs), i = static_cast<int>(first % inputs);
  int x = pixel % plan.width + plan.left, rest = pixel / plan.width;
  int y = rest % plan.height + plan.top, b = rest / plan.height;
  float t[many], sum[many];
#pragma unroll
  for (int r = 0; r < many; ++r) {
    t[r] = times[first + r * kWarp];
    // A silent input takes part in all, if it may.
    if (plan.flag && t[r] >= plan.steps) t[r] = -1;
    sum[r] = 0;
  }
  // The windows that contain the pixel, and their places behind the pooling.
  int top = y - plan.rows + 1, left = x - plan.columns + 1;
  top = top > 0 ? (top + plan.row_stride - 1) / plan.row_stride : 0;
  left = left > 0 ? (left + plan.column_stride - 1) / plan.column_stride : 0;
  int bottom = y / plan.row_stride / plan.pool_rows;
  int right = x / plan.column_stride / plan.pool_columns;
  if (bottom >= plan.out_height) bottom = plan.out_height - 1;
  if (right >= plan.out_width) right = plan.out_width - 1;
  for (int row = top / plan.pool_rows; row <= bottom; ++row) {
    for (int column = left / plan.pool_columns; column <= right; ++column) {
      int cell = (b * plan.out_height + row) * plan.out_width + column;
      const ErrorEntry* from = entries + static_cast<int64_t>(cell) * plan.outputs;
      int n = lengths[cell];
#pragma unroll 2
      for (int e = 0; e < n; ++e) {
        ErrorEntry entry = from[e];
        int down = y - (entry.where >> 16), across = x - (entry.where & 0xffff);
        if (down < 0 || down >= plan.rows || across < 0 || across >= plan.columns) {
          continue;
        }
        const float* w =
            weights + entry.at + (down * plan.columns + across) * inputs + i;
#pragma unroll
        for (int r = 0; r < many; ++r) {
          if (t[r] <= entry.end) sum[r] += entry.delta * w[r * kWarp];
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < many; ++r) d_times[first + r * kWarp] = sum[r];
}

// ---- Calls ----------------------------------------------------------------------------

using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using Words = ffi::Span<const int64_t>;

ffi::Error launched() {
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(cudaGetErrorString(error));
}

template <bool peaks>
cudaError_t allow(int bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(forward<peaks>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

ffi::Error run_forward(STREAM Words words, Floats times, Floats weights,
                       ffi::Result<Floats> spike, ffi::Result<Floats> potential,
                       ffi::Result<Floats> ends, ffi::Result<Floats> argmin,
                       ffi::Result<Integers> counts) {
  Plan plan(words.begin());
  Layout layout(plan);
  if (plan.counts) {
    cudaMemsetAsync(counts->typed_data(), 0, counts->size_bytes(), stream);
  }
  cudaError_t error = plan.flag ? allow<true>(layout.bytes) : allow<false>(layout.bytes);
  if (error != cudaSuccess) return launched();
  dim3 grid(plan.cells(), up(plan.outputs, layout.lanes));
  dim3 block(layout.threads, layout.at_once);
  auto run = plan.flag ? forward<true> : forward<false>;
  LAUNCH(run, grid, block, layout.bytes, stream, plan, layout, times.typed_data(),
         weights.typed_data(), spike->typed_data(), potential->typed_data(),
         ends->typed_data(), argmin->typed_data(), counts->typed_data());
  return launched();
}

ffi::Error run_weights(STREAM Words words, Floats times, Floats ends, Floats delta,
                       Floats argmin, ffi::Result<Floats> d_kernel,
                       ffi::Result<Floats> d_pulses, ffi::Result<Integers> scratch) {
  Plan plan(words.begin());
  Parts parts(plan);
  auto at = [&](int64_t bytes) {
    return reinterpret_cast<char*>(scratch->typed_data()) + bytes;
  };
  float* few_sums = reinterpret_cast<float*>(at(parts.few_sums));
  int outputs = plan.outputs;
  if (parts.listed) {
    ErrorEntry* entries = reinterpret_cast<ErrorEntry*>(at(parts.entries));
    int* lengths = reinterpret_cast<int*>(at(parts.lengths));
    float* sums = reinterpret_cast<float*>(at(parts.sums));
    dim3 lists(up(outputs, kWarp), up(parts.splits, 4));
    LAUNCH(list_by_output, lists, dim3(kWarp, 4), 0, stream, plan, parts,
           ends.typed_data(), delta.typed_data(), argmin.typed_data(), entries,
           lengths);
    int tiles = up(plan.size(), kRows * 256);
    int threads = whole(up(plan.size(), kRows * tiles), kWarp);
    LAUNCH(scatter_by_list, dim3(tiles, outputs, parts.splits), dim3(threads), 0, stream,
           plan, parts, times.typed_data(), entries, lengths, sums);
    LAUNCH(collect_lists, dim3(up(plan.size(), 128), outputs), dim3(128), 0, stream,
           plan, parts, sums, d_kernel->typed_data());
  }
  if (parts.few) {
    dim3 grid(up(outputs, kWarp), up(parts.few, 4), parts.few_splits);
    LAUNCH(scatter_few, grid, dim3(kWarp, 4), 0, stream, plan, parts, times.typed_data(),
           ends.typed_data(), delta.typed_data(), argmin.typed_data(), few_sums);
    LAUNCH(collect_few, dim3(up(parts.few * outputs, 128)), dim3(128), 0, stream, plan,
           parts, few_sums, d_kernel->typed_data(), d_pulses->typed_data());
  }
  return launched();
}

ffi::Error run_times(STREAM Words words, Floats times, Floats weights, Floats ends,
                     Floats delta, Floats argmin, ffi::Result<Floats> d_times,
                     ffi::Result<Integers> scratch) {
  Plan plan(words.begin());
  ErrorEntry* entries = reinterpret_cast<ErrorEntry*>(scratch->typed_data());
  int64_t cells = plan.cells();
  int* lengths = reinterpret_cast<int*>(entries + cells * plan.outputs);
  LAUNCH(list_by_cell, dim3(up(cells, 4)), dim3(kWarp, 4), 0, stream, plan,
         ends.typed_data(), delta.typed_data(), argmin.typed_data(), entries, lengths);
  int64_t all = static_cast<int64_t>(plan.images) * plan.height * plan.width;
  all *= plan.inputs;
  // Several inputs a thread, where enough threads are left to fill a GPU.
  int many = plan.inputs % 128 == 0 && all >= 4 * 100000 ? 4 : 1;
  if (many == 1 && plan.inputs % 64 == 0 && all >= 2 * 100000) many = 2;
  auto run = many == 4 ? scatter_times<4> : many == 2 ? scatter_times<2> : scatter_times<1>;
  LAUNCH(run, dim3(up(all / many, 128)), dim3(128), 0, stream, plan, times.typed_data(),
         weights.typed_data(), entries, lengths, d_times->typed_data());
  return launched();
}

}  // namespace

#define PLAN ffi::Ffi::Bind() ON_STREAM.Attr<ffi::Span<const int64_t>>("plan")

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ds4nn_forward, run_forward,
    PLAN.Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()
        .Ret<Floats>().Ret<Integers>(),
    {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ds4nn_weights, run_weights,
    PLAN.Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>()
        .Ret<Floats>().Ret<Integers>(),
    {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    ds4nn_times, run_times,
    PLAN.Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
        .Ret<Floats>().Ret<Integers>(),
    {ffi::Traits::kCmdBufferCompatible});

// What keeps these kernels from running, or null. Loads them, too, which a GPU would
// else do in the middle of a recorded graph.
extern "C" const char* ds4nn_fault() {
  cudaError_t error = cudaSuccess;
  auto load = [&](auto kernel) {
    cudaFuncAttributes found;
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&found, kernel);
  };
  load(forward<false>), load(forward<true>);
  load(list_by_output), load(scatter_by_list), load(collect_lists);
  load(scatter_few), load(collect_few), load(list_by_cell);
  load(scatter_times<1>), load(scatter_times<2>), load(scatter_times<4>);
  cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The int32 words of scratch memory of a plan: of the forward pass (0), the weights' (1)
// and the times' (2) backward pass; −1 where it is too large for these kernels.
extern "C" int64_t ds4nn_scratch(int pass, const int64_t* words) {
  const int64_t most = (int64_t{1} << 31) - 1;
  int64_t images = words[0], inputs = words[3], outputs = words[6];
  int64_t image = words[15] * words[16] * inputs, cells = images * words[4] * words[5];
  int64_t size = words[7] * words[8] * inputs, pulses = words[17], steps = words[18];
  if (images * image > most || (size + pulses + 1) * outputs > most) return -1;
  if (cells > most / kWarp) return -1;
  if (words[15] >= 1 << 15 || words[16] >= 1 << 15 || outputs > 65535) return -1;
  if (words[13] * words[14] > 1 << 15) return -1;
  if (steps > 1 << kStepBits || size + pulses > 1 << 20) return -1;
  Plan plan(words);
  if (pass == 0) {
    int device = 0, room = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return -1;
    cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return Layout(plan).bytes <= room ? 0 : -1;
  }
  int64_t bytes = pass == 1 ? Parts(plan).bytes : cells * outputs * 16 + cells * 4;
  return bytes / 4 <= most ? bytes / 4 : -1;
}
