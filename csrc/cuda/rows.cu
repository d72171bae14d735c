// The kernel checks ids with assert() also in optimised builds.
#undef NDEBUG
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <type_traits>

#include "rows.h"

namespace torch_gas::cuda {
namespace {

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(
      message(what, " failed: ", cudaGetErrorName(status), ": ", cudaGetErrorString(status)));
}

// Makes a device current, and the one before again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  // Not checked: a destructor has no one to tell, and the next call checks again.
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Which row of a matrix item i stands for: row ids[i], or row i without ids.
struct RowMap {
  const void* ids;
  int bits;
  int64_t bound;

  __device__ int64_t operator()(int64_t i) const {
    if (ids == nullptr) return i;
    const int64_t row =
        bits == 32 ? static_cast<const int32_t*>(ids)[i] : static_cast<const int64_t*>(ids)[i];
    assert(row >= 0 && row < bound && "torch_gas: an id in `index` is out of range");
    return row;
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

constexpr int kThreads = 256;

// Layout: `to` and `from` are row-major matrices of `packs` packs of V elements a row; item i moves
// row from_row(i) of `from` to row to_row(i) of `to`.
//
//   threadIdx.x -> packs of a row, side by side, so that a warp reads and writes whole lines (this
//                  is what makes reading host memory over the bus fast)
//   blockIdx.x, threadIdx.y -> rows, with a stride of the whole grid
template <class From, class To, int V>
__global__ void __launch_bounds__(kThreads)
    move_rows_kernel(const Pack<From, V>* __restrict__ from, RowMap from_row,
                     Pack<To, V>* __restrict__ to, RowMap to_row, int64_t num_rows, int64_t packs) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.y;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; i < num_rows; i += stride) {
    const Pack<From, V>* source = from + from_row(i) * packs;
    Pack<To, V>* target = to + to_row(i) * packs;
    for (int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      const Pack<From, V> in = source[p];
      Pack<To, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) out.values[v] = convert<From, To>(in.values[v]);
      target[p] = out;
    }
  }
}

struct Side {
  char* data;
  DType dtype;
  RowMap row;
};

template <class From, class To, int V>
void launch(const Side& from, const Side& to, int64_t num_rows, int64_t packs,
            const Stream& stream) {
  unsigned width = 1;
  while (width < packs && width < kThreads) width *= 2;
  const dim3 block(width, kThreads / width);
  int processors = 0;
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, stream.device),
             "cudaDeviceGetAttribute");
  // Eight blocks of 256 threads fill a multiprocessor.
  const int64_t blocks =
      std::min<int64_t>((num_rows + block.y - 1) / block.y, int64_t{8} * processors);
  move_rows_kernel<From, To, V>
      <<<static_cast<unsigned>(blocks), block, 0, static_cast<cudaStream_t>(stream.handle)>>>(
          reinterpret_cast<const Pack<From, V>*>(from.data), from.row,
          reinterpret_cast<Pack<To, V>*>(to.data), to.row, num_rows, packs);
  check_cuda(cudaGetLastError(), "move_rows_kernel");
}

bool aligned(const Side& side, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(side.data) % bytes == 0;
}

// Moves rows of one type in the widest unit that divides their size and addresses.
template <class Unit>
bool try_copy(const Side& from, const Side& to, int64_t num_rows, int64_t row_bytes,
              const Stream& stream) {
  if (row_bytes % sizeof(Unit) != 0 || !aligned(from, sizeof(Unit)) || !aligned(to, sizeof(Unit))) {
    return false;
  }
  launch<Unit, Unit, 1>(from, to, num_rows, row_bytes / sizeof(Unit), stream);
  return true;
}

template <class From, class To>
void convert_rows(const Side& from, const Side& to, int64_t num_rows, int64_t num_cols,
                  const Stream& stream) {
  // The wider of both types moves 16 bytes at a time.
  constexpr int V = 16 / (sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
  if (num_cols % V == 0 && aligned(from, sizeof(Pack<From, V>)) &&
      aligned(to, sizeof(Pack<To, V>))) {
    launch<From, To, V>(from, to, num_rows, num_cols / V, stream);
  } else {
    launch<From, To, 1>(from, to, num_rows, num_cols, stream);
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

void move_rows(const Side& from, const Side& to, int64_t num_rows, int64_t num_cols,
               const Stream& stream) {
  if (num_rows == 0 || num_cols == 0) return;
  if (from.dtype == to.dtype) {
    const int64_t bytes = num_cols * element_size(from.dtype);
    try_copy<uint4>(from, to, num_rows, bytes, stream) ||
        try_copy<uint2>(from, to, num_rows, bytes, stream) ||
        try_copy<uint32_t>(from, to, num_rows, bytes, stream) ||
        try_copy<uint16_t>(from, to, num_rows, bytes, stream) ||
        try_copy<uint8_t>(from, to, num_rows, bytes, stream);
    return;
  }
  dispatch_float(from.dtype, [&](auto from_value) {
    dispatch_float(to.dtype, [&](auto to_value) {
      using From = decltype(device_type(from_value));
      using To = decltype(device_type(to_value));
      if constexpr (!std::is_same_v<From, To>) {
        convert_rows<From, To>(from, to, num_rows, num_cols, stream);
      }
    });
  });
}

Side every_row(char* data, DType dtype) {
  return {data, dtype, {nullptr, 0, 0}};
}

// Moves one contiguous run of rows. A plain copy goes to a copy engine and leaves the
// multiprocessors to the model.
void move_run(char* from, DType from_type, char* to, DType to_type, int64_t num_rows,
              int64_t num_cols, const Stream& stream) {
  if (from_type == to_type) {
    check_cuda(cudaMemcpyAsync(to, from, num_rows * num_cols * element_size(from_type),
                               cudaMemcpyDefault, static_cast<cudaStream_t>(stream.handle)),
               "cudaMemcpyAsync");
  } else {
    move_rows(every_row(from, from_type), every_row(to, to_type), num_rows, num_cols, stream);
  }
}

}  // namespace

void gather_rows(const Table& table, const Index& index, const Rows& rows, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  move_rows({table.data, table.dtype, {index.ids, index.bits, table.num_rows}},
            every_row(rows.data, rows.dtype), rows.num_rows, table.num_cols, stream);
}

void scatter_rows(const Table& table, const Index& index, const Rows& rows, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  move_rows(every_row(rows.data, rows.dtype),
            {table.data, table.dtype, {index.ids, index.bits, table.num_rows}}, rows.num_rows,
            table.num_cols, stream);
}

void read_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                 int64_t num_chunks, const Rows& rows, const Stream& stream) {
  const Ranges chunks = chunk_ranges("read_chunks", table, offset, count, num_chunks, rows);
  const DeviceGuard guard(stream.device);
  const int64_t table_stride = table.num_cols * element_size(table.dtype);
  const int64_t rows_stride = table.num_cols * element_size(rows.dtype);
  chunks.for_each_run(0, chunks.total(), [&](int64_t source, int64_t position, int64_t length) {
    move_run(table.data + source * table_stride, table.dtype, rows.data + position * rows_stride,
             rows.dtype, length, table.num_cols, stream);
  });
}

void write_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                  int64_t num_chunks, const Rows& rows, const Stream& stream) {
  const Ranges chunks = chunk_ranges("write_chunks", table, offset, count, num_chunks, rows);
  check_disjoint("write_chunks", "offset", chunks);
  const DeviceGuard guard(stream.device);
  const int64_t table_stride = table.num_cols * element_size(table.dtype);
  const int64_t rows_stride = table.num_cols * element_size(rows.dtype);
  chunks.for_each_run(0, chunks.total(), [&](int64_t target, int64_t position, int64_t length) {
    move_run(rows.data + position * rows_stride, rows.dtype, table.data + target * table_stride,
             table.dtype, length, table.num_cols, stream);
  });
}

}  // namespace torch_gas::cuda
