// Rows between a table [N, C] and a batch, both contiguous in host memory.
//
// The types of table and rows are equal, or rows are converted on the way: then both are floating
// point, or one of them is int8 (dtype.h). C counts the numbers of a row. `I` is int32_t or
// int64_t. Nothing is written before every argument has been checked.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../ranges.h"

namespace torch_gas {

struct Table {
  char* data;
  DType dtype;
  int64_t num_rows;
  int64_t num_cols;
};

struct Rows {
  char* data;
  DType dtype;
  int64_t num_rows;
};

// The ranges of a table of `num_rows` rows that hold as many rows as there are in `rows`, adjacent
// ones as one.
Ranges chunk_ranges(const char* call, int64_t num_rows, const int64_t* offset, const int64_t* count,
                    int64_t num_chunks, const Rows& rows);

// The same; ranges must not overlap.
Ranges disjoint_chunk_ranges(const char* call, int64_t num_rows, const int64_t* offset,
                             const int64_t* count, int64_t num_chunks, const Rows& rows);

// What became of ids between their check and their use; the loops below use none that is out of
// range.
void check_unchanged(bool ok, const char* call);

// Refuses ids outside [0, num_rows) and ids that occur twice.
template <class I>
void check_distinct(const char* call, const I* index, int64_t size, int64_t num_rows, int threads);

// Rows that are contiguous on both sides, on the thread that calls.
void convert_rows(char* to, DType to_type, const char* from, DType from_type, int64_t num_rows,
                  int64_t num_cols);

// The loops of the calls below, for callers that have made their checks. Those over ranges move
// only as many rows as there are in `rows`: the ones from position `first` on.
template <class I>
void gather_unchecked(const Table& table, const I* index, const Rows& rows, int threads);
template <class I>
void scatter_unchecked(const Table& table, const I* index, const Rows& rows, int threads);
void read_unchecked(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                    int threads);
void write_unchecked(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                     int threads);

// The calls; `T` is Table or FileTable (file.h).

// rows[i] = table[index[i]]
template <class T, class I>
void gather_rows(const T& table, const I* index, const Rows& rows, int threads) {
  check_ids("gather_rows", "index", index, rows.num_rows, table.num_rows, threads);
  gather_unchecked(table, index, rows, threads);
}

// table[index[i]] = rows[i]; ids must be distinct, or the result would depend on the order.
template <class T, class I>
void scatter_rows(const T& table, const I* index, const Rows& rows, int threads) {
  check_distinct("scatter_rows", index, rows.num_rows, table.num_rows, threads);
  scatter_unchecked(table, index, rows, threads);
}

// table[index[i]] += rows[i], one after the other in the order of the call, in the type of the
// table: float32 or float64, and no narrower than that of the rows.
template <class I>
void add_rows(const Table& table, const I* index, const Rows& rows, int threads);

// rows = the rows of the ranges (offset[p], count[p]) of the table, one after the other.
template <class T>
void read_chunks(const T& table, const int64_t* offset, const int64_t* count, int64_t num_chunks,
                 const Rows& rows, int threads) {
  const Ranges chunks =
      chunk_ranges("read_chunks", table.num_rows, offset, count, num_chunks, rows);
  read_unchecked(table, chunks, 0, rows, threads);
}

// The inverse; ranges must not overlap.
template <class T>
void write_chunks(const T& table, const int64_t* offset, const int64_t* count, int64_t num_chunks,
                  const Rows& rows, int threads) {
  const Ranges chunks =
      disjoint_chunk_ranges("write_chunks", table.num_rows, offset, count, num_chunks, rows);
  write_unchecked(table, chunks, 0, rows, threads);
}

// One value in all rows of the ranges of a table of one number a row; ranges must not overlap.
void fill_chunks(int64_t* table, int64_t num_rows, const int64_t* offset, const int64_t* count,
                 int64_t num_chunks, int64_t value, int threads);

}  // namespace torch_gas
