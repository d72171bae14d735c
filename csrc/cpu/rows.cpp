#include "rows.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

namespace torch_gas {
namespace {

// Calls loop(copy) with copy(to, from, n), which moves n elements from one type to the other.
template <class Loop>
void with_copy(DType from, DType to, const Loop& loop) {
  if (from == to) {
    const int64_t size = element_size(from);
    loop([size](char* dst, const char* src, int64_t n) { std::memcpy(dst, src, n * size); });
    return;
  }
  dispatch_float(from, [&](auto from_value) {
    dispatch_float(to, [&](auto to_value) {
      using From = decltype(from_value);
      using To = decltype(to_value);
      loop([](char* dst, const char* src, int64_t n) {
        const From* x = reinterpret_cast<const From*>(src);
        To* y = reinterpret_cast<To*>(dst);
        for (int64_t i = 0; i < n; ++i) y[i] = convert<From, To>(x[i]);
      });
    });
  });
}

int64_t rows_grain(int64_t num_cols) {
  return std::max<int64_t>(1, kGrain / (num_cols + 1));
}

// Rows are far apart in the table: ask for one while another is being moved.
constexpr int64_t kPrefetchDistance = 8;

template <class I>
void check_distinct(const I* index, int64_t size, int64_t num_rows, int threads) {
  const int64_t num_words = (num_rows + 63) / 64;
  std::unique_ptr<std::atomic<uint64_t>[]> seen(new std::atomic<uint64_t>[num_words]());
  std::atomic<bool> repeated{false};
  parallel_for(size, kGrain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t bit = uint64_t{1} << (index[i] & 63);
      if (seen[index[i] >> 6].fetch_or(bit, std::memory_order_relaxed) & bit) repeated = true;
    }
  });
  if (!repeated) return;
  std::vector<int64_t> first(num_rows, -1);
  for (int64_t i = 0; i < size; ++i) {
    check_value(first[index[i]] < 0, "scatter_rows: ids in `index` must be distinct, but index[",
                first[index[i]], "] and index[", i, "] are both ", index[i],
                "; keep one row for each id");
    first[index[i]] = i;
  }
}

}  // namespace

Ranges chunk_ranges(const char* call, const Table& table, const int64_t* offset,
                    const int64_t* count, int64_t num_chunks, const Rows& rows) {
  Ranges ranges = make_ranges(call, "offset", offset, count, num_chunks, table.num_rows);
  check_value(ranges.total() == rows.num_rows, call, ": `count` sums to ", ranges.total(),
              " rows, but there are ", rows.num_rows);
  return ranges;
}

template <class I>
void gather_rows(const Table& table, const I* index, const Rows& rows, int threads) {
  check_ids("gather_rows", "index", index, rows.num_rows, table.num_rows, threads);
  const int64_t table_stride = table.num_cols * element_size(table.dtype);
  const int64_t rows_stride = table.num_cols * element_size(rows.dtype);
  with_copy(table.dtype, rows.dtype, [&](auto copy) {
    parallel_for(
        rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            if (i + kPrefetchDistance < end) {
              __builtin_prefetch(table.data + index[i + kPrefetchDistance] * table_stride);
            }
            copy(rows.data + i * rows_stride, table.data + index[i] * table_stride, table.num_cols);
          }
        });
  });
}

template <class I>
void scatter_rows(const Table& table, const I* index, const Rows& rows, int threads) {
  check_ids("scatter_rows", "index", index, rows.num_rows, table.num_rows, threads);
  check_distinct(index, rows.num_rows, table.num_rows, threads);
  const int64_t table_stride = table.num_cols * element_size(table.dtype);
  const int64_t rows_stride = table.num_cols * element_size(rows.dtype);
  with_copy(rows.dtype, table.dtype, [&](auto copy) {
    parallel_for(
        rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            copy(table.data + index[i] * table_stride, rows.data + i * rows_stride, table.num_cols);
          }
        });
  });
}

void read_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                 int64_t num_chunks, const Rows& rows, int threads) {
  const Ranges chunks = chunk_ranges("read_chunks", table, offset, count, num_chunks, rows);
  const int64_t table_stride = table.num_cols * element_size(table.dtype);
  const int64_t rows_stride = table.num_cols * element_size(rows.dtype);
  with_copy(table.dtype, rows.dtype, [&](auto copy) {
    parallel_for(
        rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
          chunks.for_each_run(begin, end, [&](int64_t source, int64_t position, int64_t length) {
            copy(rows.data + position * rows_stride, table.data + source * table_stride,
                 length * table.num_cols);
          });
        });
  });
}

void write_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                  int64_t num_chunks, const Rows& rows, int threads) {
  const Ranges chunks = chunk_ranges("write_chunks", table, offset, count, num_chunks, rows);
  check_disjoint("write_chunks", "offset", chunks);
  const int64_t table_stride = table.num_cols * element_size(table.dtype);
  const int64_t rows_stride = table.num_cols * element_size(rows.dtype);
  with_copy(rows.dtype, table.dtype, [&](auto copy) {
    parallel_for(
        rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
          chunks.for_each_run(begin, end, [&](int64_t target, int64_t position, int64_t length) {
            copy(table.data + target * table_stride, rows.data + position * rows_stride,
                 length * table.num_cols);
          });
        });
  });
}

template void gather_rows(const Table&, const int32_t*, const Rows&, int);
template void gather_rows(const Table&, const int64_t*, const Rows&, int);
template void scatter_rows(const Table&, const int32_t*, const Rows&, int);
template void scatter_rows(const Table&, const int64_t*, const Rows&, int);

}  // namespace torch_gas
