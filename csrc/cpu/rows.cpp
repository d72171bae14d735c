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

Ranges checked_ranges(const char* call, const Table& table, const int64_t* offset,
                      const int64_t* count, int64_t num_chunks, const Rows& rows) {
  Ranges ranges = make_ranges(call, "offset", offset, count, num_chunks, table.num_rows);
  check_value(ranges.total() == rows.num_rows, call, ": `count` sums to ", ranges.total(),
              " rows, but there are ", rows.num_rows);
  return ranges;
}

// Calls move(in_table, in_rows, n) on runs of n elements that make up `rows`, the rows of `chunks`
// from position `first` on.
template <class F>
void for_each_run(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                  int threads, const F& move) {
  const int64_t table_stride = table.num_cols * element_size(table.dtype);
  const int64_t rows_stride = table.num_cols * element_size(rows.dtype);
  parallel_for(rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
    chunks.for_each_run(
        first + begin, first + end, [&](int64_t row, int64_t position, int64_t length) {
          move(table.data + row * table_stride, rows.data + (position - first) * rows_stride,
               length * table.num_cols);
        });
  });
}

}  // namespace

Ranges chunk_ranges(const char* call, const Table& table, const int64_t* offset,
                    const int64_t* count, int64_t num_chunks, const Rows& rows) {
  return merge_adjacent(checked_ranges(call, table, offset, count, num_chunks, rows));
}

Ranges disjoint_chunk_ranges(const char* call, const Table& table, const int64_t* offset,
                             const int64_t* count, int64_t num_chunks, const Rows& rows) {
  const Ranges ranges = checked_ranges(call, table, offset, count, num_chunks, rows);
  check_disjoint(call, "offset", ranges);
  return merge_adjacent(ranges);
}

template <class I>
void gather_unchecked(const Table& table, const I* index, const Rows& rows, int threads) {
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
void gather_rows(const Table& table, const I* index, const Rows& rows, int threads) {
  check_ids("gather_rows", "index", index, rows.num_rows, table.num_rows, threads);
  gather_unchecked(table, index, rows, threads);
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

void read_unchecked(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                    int threads) {
  with_copy(table.dtype, rows.dtype, [&](auto copy) {
    for_each_run(table, chunks, first, rows, threads,
                 [&](char* there, char* here, int64_t n) { copy(here, there, n); });
  });
}

void write_unchecked(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                     int threads) {
  with_copy(rows.dtype, table.dtype, [&](auto copy) {
    for_each_run(table, chunks, first, rows, threads,
                 [&](char* there, char* here, int64_t n) { copy(there, here, n); });
  });
}

void read_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                 int64_t num_chunks, const Rows& rows, int threads) {
  const Ranges chunks = chunk_ranges("read_chunks", table, offset, count, num_chunks, rows);
  read_unchecked(table, chunks, 0, rows, threads);
}

void write_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                  int64_t num_chunks, const Rows& rows, int threads) {
  const Ranges chunks =
      disjoint_chunk_ranges("write_chunks", table, offset, count, num_chunks, rows);
  write_unchecked(table, chunks, 0, rows, threads);
}

template void gather_rows(const Table&, const int32_t*, const Rows&, int);
template void gather_rows(const Table&, const int64_t*, const Rows&, int);
template void scatter_rows(const Table&, const int32_t*, const Rows&, int);
template void scatter_rows(const Table&, const int64_t*, const Rows&, int);
template void gather_unchecked(const Table&, const int32_t*, const Rows&, int);
template void gather_unchecked(const Table&, const int64_t*, const Rows&, int);

}  // namespace torch_gas
