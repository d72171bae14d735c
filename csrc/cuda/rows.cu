// The kernel checks ids with assert() also in optimised builds.
#undef NDEBUG
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cassert>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "rows.h"

namespace torch_gas::cuda {
namespace {

// The rows of the table: row ids[i] for item i, or row i without ids.
struct RowMap {
  const void* ids;
  int bits;
  int64_t bound;

  __device__ int64_t load(int64_t i) const {
    if (ids == nullptr) return i;
    return bits == 32 ? static_cast<const int32_t*>(ids)[i] : static_cast<const int64_t*>(ids)[i];
  }

  __device__ void check(int64_t row) const {
    assert((ids == nullptr || (row >= 0 && row < bound)) &&
           "torch_gas: an id in `index` is out of range");
  }
};

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(double x) {
  return __double2float_rn(x);
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class To>
__device__ inline To from_float(float x);
template <>
__device__ inline float from_float(float x) {
  return x;
}
template <>
__device__ inline double from_float(float x) {
  return x;
}
template <>
__device__ inline __half from_float(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float(float x) {
  return __float2bfloat16_rn(x);
}

// As on the host, double reaches the 16-bit types by way of float.
template <class From, class To>
__device__ inline To convert(From x) {
  if constexpr (std::is_same_v<From, To>) {
    return x;
  } else {
    return from_float<To>(to_float(x));
  }
}

// V elements that are loaded and stored with one instruction.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

constexpr int kThreads = 512;

// Loads that a thread issues, each from a row of its own, before it stores the first.
constexpr int kRowsInFlight = 4;

// What a kernel asks of a table in host memory at a time. A PCIe 5 x16 link is busy from
// 55 GB/s * 2 us = 110 KB on; more than that covers the ends of loops and loaded memory. With loads
// of 16 bytes these are 16 blocks: 16 * 512 threads * 4 rows * 16 bytes.
constexpr int64_t kHostBytesInFlight = 512 * 1024;

// What a kernel moves. `from` and `to` are row-major matrices of `packs` packs of V elements a row,
// behind which a row of scaled elements has its scale; strides are in bytes. Item i is a row of
// each: row map(i) in the table, which is `to` if `scatter`, and row i in the other.
template <class From, class To, int V>
struct Matrices {
  const char* from;
  char* to;
  int64_t from_stride;
  int64_t to_stride;
  RowMap map;
  bool scatter;
  int64_t num_rows;
  int64_t packs;

  __device__ const Pack<From, V>* source(int64_t item, int64_t row) const {
    const char* const at = from + (scatter ? item : row) * from_stride;
    return reinterpret_cast<const Pack<From, V>*>(at);
  }
  __device__ Pack<To, V>* target(int64_t item, int64_t row) const {
    return reinterpret_cast<Pack<To, V>*>(to + (scatter ? row : item) * to_stride);
  }
};

// The scale behind a row of scaled elements. Packs of four keep it aligned, single ones do not.
template <class Q, int V>
__device__ inline float load_scale(const Pack<Q, V>* end) {
  Pack<Q, V> bytes[4 / V];
  for (int i = 0; i < 4 / V; ++i) bytes[i] = end[i];
  float scale;
  memcpy(&scale, bytes, sizeof scale);
  return scale;
}

template <class Q, int V>
__device__ inline void store_scale(Pack<Q, V>* end, float scale) {
  Pack<Q, V> bytes[4 / V];
  memcpy(bytes, &scale, sizeof scale);
  for (int i = 0; i < 4 / V; ++i) end[i] = bytes[i];
}

// Moves R items from `first` on, `stride` apart: first loads all ids, then all packs, and stores
// last, so that loads wait together.
template <int R, class From, class To, int V>
__device__ inline void move_items(const Matrices<From, To, V>& m, int64_t first, int64_t stride) {
  int64_t row[R];
#pragma unroll
  for (int r = 0; r < R; ++r) row[r] = m.map.load(first + r * stride);
  const Pack<From, V>* source[R];
  Pack<To, V>* target[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    m.map.check(row[r]);
    source[r] = m.source(first + r * stride, row[r]);
    target[r] = m.target(first + r * stride, row[r]);
  }
  float scale[R];
  if constexpr (is_scaled<From>) {
#pragma unroll
    for (int r = 0; r < R; ++r) scale[r] = load_scale(source[r] + m.packs);
  }
  for (int64_t p = threadIdx.x; p < m.packs; p += blockDim.x) {
    Pack<From, V> in[R];
#pragma unroll
    for (int r = 0; r < R; ++r) in[r] = source[r][p];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      Pack<To, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if constexpr (is_scaled<From>) {
          out.values[v] = from_float<To>(to_float(in[r].values[v]) * scale[r]);
        } else {
          out.values[v] = convert<From, To>(in[r].values[v]);
        }
      }
      target[r][p] = out;
    }
  }
}

// Layout:
//
//   threadIdx.x -> packs of a row, side by side, so that a warp reads and writes whole lines (this
//                  is what makes reading host memory over the bus fast)
//   blockIdx.x, threadIdx.y -> rows, with a stride of the whole grid, kRowsInFlight at a time and
//                  the last few one by one
template <class From, class To, int V>
__global__ void __launch_bounds__(kThreads) move_rows_kernel(const Matrices<From, To, V> m) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  for (; i + (kRowsInFlight - 1) * stride < m.num_rows; i += kRowsInFlight * stride) {
    move_items<kRowsInFlight>(m, i, stride);
  }
  for (; i < m.num_rows; i += stride) move_items<1>(m, i, stride);
}

constexpr int kWarp = 32;

// The largest value of a warp, in all of its lanes.
__device__ inline uint32_t warp_max(uint32_t value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(~0u, value, distance));
  }
  return value;
}

// Rows become scaled elements. Layout:
//
//   threadIdx.x -> packs of a row, side by side; a warp reads its row twice, for the scale and for
//                  the numbers, the second time from a cache
//   blockIdx.x, threadIdx.y -> rows, with a stride of the whole grid
template <class From, class To, int V>
__global__ void __launch_bounds__(kThreads) scale_kernel(const Matrices<From, To, V> m) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; i < m.num_rows; i += stride) {
    const int64_t row = m.map.load(i);
    m.map.check(row);
    const Pack<From, V>* const source = m.source(i, row);
    Pack<To, V>* const target = m.target(i, row);
    uint32_t largest = 0;
    for (int64_t p = threadIdx.x; p < m.packs; p += kWarp) {
      const Pack<From, V> in = source[p];
#pragma unroll
      for (int v = 0; v < V; ++v) largest = max(largest, magnitude_bits(to_float(in.values[v])));
    }
    const float scale = row_scale<To>(warp_max(largest));
    for (int64_t p = threadIdx.x; p < m.packs; p += kWarp) {
      const Pack<From, V> in = source[p];
      Pack<To, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        out.values[v] = scale > 0 ? to_scaled<To>(to_float(in.values[v]), scale) : To{};
      }
      target[p] = out;
    }
    if (threadIdx.x == 0) store_scale(target + m.packs, scale);
  }
}

struct Side {
  char* data;
  DType dtype;
};

// One call of a kernel; `map` and `scatter` as in Matrices.
struct Move {
  Side from;
  Side to;
  RowMap map;
  bool scatter;
  int64_t num_rows;
  int64_t num_cols;
  Stream stream;
  bool host_table;
};

// Blocks of kThreads threads that are enough for a table, where each thread loads so many bytes at
// a time.
int64_t most_blocks(const Stream& stream, bool host_table, int64_t load) {
  if (host_table) return kHostBytesInFlight / (kThreads * load);
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, stream.device),
             "cudaDeviceGetAttribute");
  return int64_t{4} * processors;  // of 512 threads: no multiprocessor holds more
}

template <class Argument>
void start(void (*kernel)(Argument), const std::remove_const_t<Argument>& argument, int64_t blocks,
           dim3 block, const Stream& stream, const char* name) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  check_cuda(cudaLaunchKernelEx(&config, kernel, argument), name);
}

template <class From, class To, int V>
void launch(const Move& move, int64_t packs) {
  constexpr bool kScales = is_scaled<To> && !is_scaled<From>;
  unsigned width = kScales ? kWarp : 1;
  while (!kScales && width < packs && width < kThreads) width *= 2;
  const dim3 block(width, kThreads / width);
  constexpr int64_t kLoad = std::min(sizeof(Pack<From, V>), sizeof(Pack<To, V>));
  const int64_t blocks =
      std::min<int64_t>((move.num_rows + block.y - 1) / block.y,
                        most_blocks(move.stream, move.host_table, kRowsInFlight * kLoad));
  const Matrices<From, To, V> matrices{move.from.data,
                                       move.to.data,
                                       row_bytes(move.from.dtype, move.num_cols),
                                       row_bytes(move.to.dtype, move.num_cols),
                                       move.map,
                                       move.scatter,
                                       move.num_rows,
                                       packs};
  void (*kernel)(Matrices<From, To, V>) = nullptr;
  if constexpr (kScales) {
    kernel = scale_kernel<From, To, V>;
  } else {
    kernel = move_rows_kernel<From, To, V>;
  }
  start(kernel, matrices, blocks, block, move.stream,
        kScales ? "scale_kernel" : "move_rows_kernel");
}

bool aligned(const Side& side, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(side.data) % bytes == 0;
}

// Moves rows of one type in the widest unit that divides their size and addresses.
template <class Unit>
bool try_copy(const Move& move) {
  const int64_t stride = row_bytes(move.from.dtype, move.num_cols);
  if (stride % sizeof(Unit) != 0 || !aligned(move.from, sizeof(Unit)) ||
      !aligned(move.to, sizeof(Unit))) {
    return false;
  }
  launch<Unit, Unit, 1>(move, stride / sizeof(Unit));
  return true;
}

template <class From, class To>
void convert_rows(const Move& move) {
  // The wider of both types moves 16 bytes at a time, or four numbers if the other is scaled: its
  // rows start at multiples of four bytes.
  constexpr int V = is_scaled<From> || is_scaled<To> ? 4 : 16 / std::max(sizeof(From), sizeof(To));
  if (move.num_cols % V == 0 && aligned(move.from, sizeof(Pack<From, V>)) &&
      aligned(move.to, sizeof(Pack<To, V>))) {
    launch<From, To, V>(move, move.num_cols / V);
  } else {
    launch<From, To, 1>(move, move.num_cols);
  }
}

// The CUDA type of an element type of dtype.h.
inline float device_type(float) {
  return {};
}
inline double device_type(double) {
  return {};
}
inline __half device_type(Half) {
  return {};
}
inline __nv_bfloat16 device_type(BFloat16) {
  return {};
}

void move_rows(const Move& move) {
  if (move.num_rows == 0 || move.num_cols == 0) return;
  if (move.from.dtype == move.to.dtype) {
    try_copy<uint4>(move) || try_copy<uint2>(move) || try_copy<uint32_t>(move) ||
        try_copy<uint16_t>(move) || try_copy<uint8_t>(move);
    return;
  }
  const bool from_is_scaled = dispatch_scaled(move.from.dtype, [&](auto element) {
    dispatch_float(move.to.dtype, [&](auto value) {
      convert_rows<decltype(element), decltype(device_type(value))>(move);
    });
  });
  if (from_is_scaled) return;
  const bool to_is_scaled = dispatch_scaled(move.to.dtype, [&](auto element) {
    dispatch_float(move.from.dtype, [&](auto value) {
      convert_rows<decltype(device_type(value)), decltype(element)>(move);
    });
  });
  if (to_is_scaled) return;
  dispatch_float(move.from.dtype, [&](auto from_value) {
    dispatch_float(move.to.dtype, [&](auto to_value) {
      using From = decltype(device_type(from_value));
      using To = decltype(device_type(to_value));
      if constexpr (!std::is_same_v<From, To>) convert_rows<From, To>(move);
    });
  });
}

// Rows that are added to those of a table, in packs of V elements. Ids do not descend: item i is
// row map(i) of the table, and row order[i] of the others, or row i without an order.
template <class From, class To, int V>
struct Sums {
  const char* from;
  char* to;
  int64_t from_stride;
  int64_t to_stride;
  RowMap map;
  const int64_t* order;
  int64_t num_rows;
  int64_t packs;

  __device__ const Pack<From, V>* source(int64_t item) const {
    const int64_t row = order == nullptr ? item : order[item];
    return reinterpret_cast<const Pack<From, V>*>(from + row * from_stride);
  }
};

// Layout as that of move_rows_kernel. The threads of the first item of an id add the rows of all
// of them, one after the other, so that sums have the bits of the host.
template <class From, class To, int V>
__global__ void __launch_bounds__(kThreads) add_rows_kernel(const Sums<From, To, V> m) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; i < m.num_rows; i += stride) {
    const int64_t row = m.map.load(i), before = i > 0 ? m.map.load(i - 1) : -1;
    m.map.check(row);
    assert(before <= row && "torch_gas: ids in `index` descend, though they were said to ascend");
    if (before == row) continue;
    int64_t end = i + 1;
    while (end < m.num_rows && m.map.load(end) == row) ++end;
    auto* const target = reinterpret_cast<Pack<To, V>*>(m.to + row * m.to_stride);
    for (int64_t p = threadIdx.x; p < m.packs; p += blockDim.x) {
      Pack<To, V> sum = target[p];
      for (int64_t item = i; item < end; ++item) {
        const Pack<From, V> in = m.source(item)[p];
#pragma unroll
        for (int v = 0; v < V; ++v) sum.values[v] += convert<From, To>(in.values[v]);
      }
      target[p] = sum;
    }
  }
}

template <class From, class To, int V>
void launch_sums(const Table& table, const RowMap& map, const int64_t* order, const Rows& rows,
                 const Stream& stream, bool host_table) {
  const int64_t packs = table.num_cols / V;
  unsigned width = 1;
  while (width < packs && width < kThreads) width *= 2;
  const dim3 block(width, kThreads / width);
  const int64_t blocks = std::min<int64_t>((rows.num_rows + block.y - 1) / block.y,
                                           most_blocks(stream, host_table, sizeof(Pack<To, V>)));
  const Sums<From, To, V> sums{rows.data,
                               table.data,
                               row_bytes(rows.dtype, table.num_cols),
                               row_bytes(table.dtype, table.num_cols),
                               map,
                               order,
                               rows.num_rows,
                               packs};
  start(add_rows_kernel<From, To, V>, sums, blocks, block, stream, "add_rows_kernel");
}

// Runs of rows as copies of one type. Copy engines make them and leave the multiprocessors to the
// model.
struct Copies {
  std::vector<void*> to;
  std::vector<const void*> from;
  std::vector<size_t> bytes;
};

void enqueue(const Copies& copies, const Stream& stream) {
  const auto handle = static_cast<cudaStream_t>(stream.handle);
  // One call for all. A runtime of CUDA 13 only works with drivers that have it; the default stream
  // refuses it.
#if CUDART_VERSION >= 13000
  if (copies.to.size() > 1 && handle != nullptr && handle != cudaStreamLegacy) {
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    size_t first = 0;  // the attributes apply from the first copy on
    check_cuda(cudaMemcpyBatchAsync(copies.to.data(), copies.from.data(), copies.bytes.data(),
                                    copies.to.size(), &attributes, &first, 1, handle),
               "cudaMemcpyBatchAsync");
    return;
  }
#endif
  for (size_t i = 0; i < copies.to.size(); ++i) {
    check_cuda(
        cudaMemcpyAsync(copies.to[i], copies.from[i], copies.bytes[i], cudaMemcpyDefault, handle),
        "cudaMemcpyAsync");
  }
}

// Moves the rows of ranges to or from `rows`: copies of one type, or a kernel for each range.
void move_ranges(const Table& table, const Ranges& chunks, const Rows& rows, bool to_table,
                 const Stream& stream, bool host_table) {
  if (table.num_cols == 0) return;
  const DeviceGuard guard(stream.device);
  const int64_t table_stride = row_bytes(table.dtype, table.num_cols);
  const int64_t rows_stride = row_bytes(rows.dtype, table.num_cols);
  Copies copies;
  chunks.for_each_run(0, chunks.total(), [&](int64_t row, int64_t position, int64_t length) {
    Side from{table.data + row * table_stride, table.dtype};
    Side to{rows.data + position * rows_stride, rows.dtype};
    if (to_table) std::swap(from, to);
    if (from.dtype == to.dtype) {
      copies.to.push_back(to.data);
      copies.from.push_back(from.data);
      copies.bytes.push_back(length * table_stride);
    } else {
      move_rows({from, to, RowMap{}, to_table, length, table.num_cols, stream, host_table});
    }
  });
  enqueue(copies, stream);
}

}  // namespace

void gather_rows(const Table& table, const Index& index, const Rows& rows, const Stream& stream,
                 bool host_table) {
  const DeviceGuard guard(stream.device);
  const RowMap map{index.ids, index.bits, table.num_rows};
  move_rows({{table.data, table.dtype},
             {rows.data, rows.dtype},
             map,
             false,
             rows.num_rows,
             table.num_cols,
             stream,
             host_table});
}

void scatter_rows(const Table& table, const Index& index, const Rows& rows, const Stream& stream,
                  bool host_table) {
  const DeviceGuard guard(stream.device);
  const RowMap map{index.ids, index.bits, table.num_rows};
  move_rows({{rows.data, rows.dtype},
             {table.data, table.dtype},
             map,
             true,
             rows.num_rows,
             table.num_cols,
             stream,
             host_table});
}

void add_rows(const Table& table, const Index& index, const int64_t* order, const Rows& rows,
              const Stream& stream, bool host_table) {
  if (rows.num_rows == 0 || table.num_cols == 0) return;
  const DeviceGuard guard(stream.device);
  const RowMap map{index.ids, index.bits, table.num_rows};
  dispatch_float(rows.dtype, [&](auto from_value) {
    dispatch_float(table.dtype, [&](auto to_value) {
      using From = decltype(device_type(from_value));
      using To = decltype(device_type(to_value));
      if constexpr (sizeof(To) >= sizeof(float) && sizeof(From) <= sizeof(To)) {
        constexpr int V = 16 / sizeof(To);
        const bool wide = table.num_cols % V == 0 &&
                          aligned({rows.data, rows.dtype}, sizeof(Pack<From, V>)) &&
                          aligned({table.data, table.dtype}, sizeof(Pack<To, V>));
        const auto launch = wide ? launch_sums<From, To, V> : launch_sums<From, To, 1>;
        launch(table, map, order, rows, stream, host_table);
      } else {
        throw std::invalid_argument(kNarrowSums);
      }
    });
  });
}

void read_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                 int64_t num_chunks, const Rows& rows, const Stream& stream, bool host_table) {
  const Ranges chunks =
      chunk_ranges("read_chunks", table.num_rows, offset, count, num_chunks, rows);
  move_ranges(table, chunks, rows, false, stream, host_table);
}

void write_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                  int64_t num_chunks, const Rows& rows, const Stream& stream, bool host_table) {
  const Ranges chunks =
      disjoint_chunk_ranges("write_chunks", table.num_rows, offset, count, num_chunks, rows);
  move_ranges(table, chunks, rows, true, stream, host_table);
}

}  // namespace torch_gas::cuda
