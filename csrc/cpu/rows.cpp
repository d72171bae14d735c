#include "rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "convert.h"

namespace torch_gas {
namespace {

// Bytes from which on rows are written around the caches: they would not stay there anyway, and
// memory that is overwritten need not be read first.
constexpr int64_t kStreamed = int64_t{4} << 20;

// Whether rows of `stride` bytes are to be written around the caches, the first of them to `to`.
bool is_streamed(const char* to, int64_t stride, int64_t num_rows) {
  return num_rows * stride >= kStreamed && reinterpret_cast<uintptr_t>(to) % kLine == 0 &&
         stride % kLine == 0;
}

int64_t rows_grain(int64_t num_cols) {
  return std::max<int64_t>(1, kGrain / (num_cols + 1));
}

// Rows are far apart in the table: all lines of a row are asked for while those before are moved.
// They are asked into the second-level cache, because the first has room for few requests at a
// time.
constexpr int64_t kAhead = 8192;  // bytes

int64_t rows_ahead(int64_t row_bytes) {
  return std::max<int64_t>(1, kAhead / std::max<int64_t>(1, row_bytes));
}

void prefetch(const char* row, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += kLine) __builtin_prefetch(row + line, 0, 2);
}

// Each piece of the ids marks its own in a bitmap; then pieces are compared. Ids out of range are
// reported, and not marked.
template <class I>
bool are_distinct(const I* index, int64_t size, int64_t num_rows, int threads, FirstBad& bad) {
  const int64_t num_words = (num_rows + 63) / 64;
  const Pieces pieces(size, std::max(num_words, kGrain), threads);
  std::vector<uint64_t> seen(pieces.count * num_words);
  std::atomic<bool> repeated{false};
  parallel_for(pieces.count, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      uint64_t* const words = seen.data() + piece * num_words;
      uint64_t again = 0;
      for (int64_t i = pieces.begin(piece); i < pieces.begin(piece + 1); ++i) {
        const int64_t id = load_id(index + i);
        if (!in_range(id, num_rows)) return bad.report(i);
        const uint64_t bit = uint64_t{1} << (id & 63);
        again |= words[id >> 6] & bit;
        words[id >> 6] |= bit;
      }
      if (again != 0) repeated = true;
    }
  });
  for (int64_t piece = 1; piece < pieces.count; ++piece) {
    uint64_t again = 0;
    for (int64_t w = 0; w < num_words; ++w) {
      again |= seen[w] & seen[piece * num_words + w];
      seen[w] |= seen[piece * num_words + w];
    }
    if (again != 0) repeated = true;
  }
  return !repeated;
}

// Tells whether ids ascend, each once. Those out of range are reported.
template <class I>
bool do_ascend(const I* index, int64_t size, int64_t num_rows, int threads, FirstBad& bad) {
  std::atomic<bool> descend{false};
  parallel_for(size, kGrain, threads, [&](int64_t begin, int64_t end) {
    int64_t before = begin > 0 ? load_id(index + begin - 1) : -1;
    bool ascend = true;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = load_id(index + i);
      if (!in_range(id, num_rows)) return bad.report(i);
      ascend &= before < id;
      before = id;
    }
    if (!ascend) descend = true;
  });
  return !descend;
}

// Calls move(in_table, in_row) for each id; rows of the table are asked for ahead of that if
// `fetched`.
template <class I, class F>
void for_each_id(const char* call, const Table& table, const I* index, const Rows& rows,
                 bool fetched, bool streamed, int threads, const F& move) {
  const int64_t table_stride = row_bytes(table.dtype, table.num_cols);
  const int64_t rows_stride = row_bytes(rows.dtype, table.num_cols);
  const int64_t ahead = rows_ahead(table_stride);
  FirstBad changed;
  parallel_for(rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (fetched && i + ahead < end) {
        prefetch(table.data + index[i + ahead] * table_stride, table_stride);
      }
      const int64_t id = load_id(index + i);
      if (!in_range(id, table.num_rows)) {
        changed.report(i);
        break;
      }
      move(table.data + id * table_stride, rows.data + i * rows_stride);
    }
    if (streamed) finish_stream();
  });
  check_unchanged(!changed.found(), call);
}

// The same for ids that occur several times: each is on one thread, which goes through its rows in
// order.
template <class I, class F>
void for_each_sorted_id(const char* call, const Table& table, const I* index, const Rows& rows,
                        int threads, const F& move) {
  const int64_t table_stride = row_bytes(table.dtype, table.num_cols);
  const int64_t rows_stride = row_bytes(rows.dtype, table.num_cols);
  std::vector<std::pair<int64_t, int64_t>> items;  // id and position, so that no two are equal
  items.reserve(rows.num_rows);
  for (int64_t i = 0; i < rows.num_rows; ++i) {
    items.emplace_back(load_id(index + i), i);
    check_unchanged(in_range(items.back().first, table.num_rows), call);
  }
  std::sort(items.begin(), items.end());
  const auto goes_on = [&](int64_t i) { return i > 0 && items[i].first == items[i - 1].first; };
  parallel_for(rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
    while (begin < end && goes_on(begin)) ++begin;  // it belongs to the piece before
    for (int64_t i = begin; begin < end && i < rows.num_rows && (i < end || goes_on(i)); ++i) {
      move(table.data + items[i].first * table_stride, rows.data + items[i].second * rows_stride);
    }
  });
}

// Rows of one number each, of `kBytes`. A function for each and requests ahead would take longer
// than to read them: many loads are under way at a time as it is.
template <int64_t kBytes, class I>
void gather_numbers(const Table& table, const I* index, const Rows& rows, int threads) {
  FirstBad changed;
  parallel_for(rows.num_rows, kGrain, threads, [&](int64_t begin, int64_t end) {
    // Copies, which stores to `to` cannot change.
    const char* const from = table.data;
    char* const to = rows.data;
    const int64_t num_rows = table.num_rows;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = load_id(index + i);
      if (!in_range(id, num_rows)) return changed.report(i);
      std::memcpy(to + i * kBytes, from + id * kBytes, kBytes);
    }
  });
  check_unchanged(!changed.found(), "gather_rows");
}

Ranges checked_ranges(const char* call, int64_t num_rows, const int64_t* offset,
                      const int64_t* count, int64_t num_chunks, const Rows& rows) {
  Ranges ranges = make_ranges(call, "offset", offset, count, num_chunks, num_rows);
  check_value(ranges.total() == rows.num_rows, Call{call}, ": `", Argument{"count"}, "` sums to ",
              ranges.total(), " rows, but there are ", rows.num_rows);
  return ranges;
}

// Calls move(in_table, in_rows, n) on runs of n rows that make up `rows`, the rows of `chunks`
// from position `first` on.
template <class F>
void for_each_run(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                  bool streamed, int threads, const F& move) {
  const int64_t table_stride = row_bytes(table.dtype, table.num_cols);
  const int64_t rows_stride = row_bytes(rows.dtype, table.num_cols);
  parallel_for(rows.num_rows, rows_grain(table.num_cols), threads, [&](int64_t begin, int64_t end) {
    chunks.for_each_run(first + begin, first + end,
                        [&](int64_t row, int64_t position, int64_t length) {
                          move(table.data + row * table_stride,
                               rows.data + (position - first) * rows_stride, length);
                        });
    if (streamed) finish_stream();
  });
}

}  // namespace

void check_unchanged(bool ok, const char* call) {
  check_value(ok, Call{call}, ": `", Argument{"index"},
              "` was written to while it was read; pass a tensor that no other thread changes");
}

template <class I>
void check_distinct(const char* call, const I* index, int64_t size, int64_t num_rows, int threads) {
  FirstBad bad;
  const bool distinct = are_distinct(index, size, num_rows, threads, bad);
  check_reported(bad, call, "index", index, num_rows);
  if (distinct) return;
  std::vector<int64_t> first(num_rows, -1);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t id = load_id(index + i);
    check_unchanged(in_range(id, num_rows), call);
    check_value(first[id] < 0, Call{call}, ": ids in `", Argument{"index"},
                "` must be distinct, but ", Argument{"index"}, "[", first[id], "] and ",
                Argument{"index"}, "[", i, "] are both ", id, "; keep one row for each id");
    first[id] = i;
  }
  check_unchanged(false, call);
}

void convert_rows(char* to, DType to_type, const char* from, DType from_type, int64_t num_rows,
                  int64_t num_cols) {
  with_copy(from_type, to_type, num_cols, false, [&](auto copy) { copy(to, from, num_rows); });
}

Ranges chunk_ranges(const char* call, int64_t num_rows, const int64_t* offset, const int64_t* count,
                    int64_t num_chunks, const Rows& rows) {
  return merge_adjacent(checked_ranges(call, num_rows, offset, count, num_chunks, rows));
}

Ranges disjoint_chunk_ranges(const char* call, int64_t num_rows, const int64_t* offset,
                             const int64_t* count, int64_t num_chunks, const Rows& rows) {
  const Ranges ranges = checked_ranges(call, num_rows, offset, count, num_chunks, rows);
  check_disjoint(call, "offset", ranges);
  return merge_adjacent(ranges);
}

template <class I>
void gather_unchecked(const Table& table, const I* index, const Rows& rows, int threads) {
  if (table.num_cols == 0) return;  // and there may be no memory
  if (table.dtype == DType::bytes && table.num_cols == 4)
    return gather_numbers<4>(table, index, rows, threads);
  if (table.dtype == DType::bytes && table.num_cols == 8)
    return gather_numbers<8>(table, index, rows, threads);
  const bool streamed =
      is_streamed(rows.data, row_bytes(rows.dtype, table.num_cols), rows.num_rows);
  with_copy(table.dtype, rows.dtype, table.num_cols, streamed, [&](auto copy) {
    for_each_id("gather_rows", table, index, rows, true, streamed, threads,
                [&](char* there, char* here) { copy(here, there, 1); });
  });
}

template <class I>
void scatter_unchecked(const Table& table, const I* index, const Rows& rows, int threads) {
  if (table.num_cols == 0) return;
  const bool streamed =
      is_streamed(table.data, row_bytes(table.dtype, table.num_cols), rows.num_rows);
  with_copy(rows.dtype, table.dtype, table.num_cols, streamed, [&](auto copy) {
    for_each_id("scatter_rows", table, index, rows, !streamed, streamed, threads,
                [&](char* there, char* here) { copy(there, here, 1); });
  });
}

template <class I>
void add_rows(const Table& table, const I* index, const Rows& rows, int threads) {
  FirstBad bad;
  const bool ascends = do_ascend(index, rows.num_rows, table.num_rows, threads, bad);
  check_reported(bad, "add_rows", "index", index, table.num_rows);
  if (table.num_cols == 0) return;
  const bool distinct = ascends || are_distinct(index, rows.num_rows, table.num_rows, threads, bad);
  with_add(rows.dtype, table.dtype, [&](auto add) {
    const auto add_row = [&](char* there, char* here) { add(there, here, table.num_cols); };
    if (distinct) {
      for_each_id("add_rows", table, index, rows, true, false, threads, add_row);
    } else {
      for_each_sorted_id("add_rows", table, index, rows, threads, add_row);
    }
  });
}

void read_unchecked(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                    int threads) {
  if (table.num_cols == 0) return;
  const int64_t rows_stride = row_bytes(rows.dtype, table.num_cols);
  const bool streamed = is_streamed(rows.data, rows_stride, rows.num_rows);
  with_copy(table.dtype, rows.dtype, table.num_cols, streamed, [&](auto copy) {
    for_each_run(table, chunks, first, rows, streamed, threads,
                 [&](char* there, char* here, int64_t n) { copy(here, there, n); });
  });
}

void fill_chunks(int64_t* table, int64_t num_rows, const int64_t* offset, const int64_t* count,
                 int64_t num_chunks, int64_t value, int threads) {
  const Ranges chunks = make_ranges("fill_chunks", "offset", offset, count, num_chunks, num_rows);
  check_disjoint("fill_chunks", "offset", chunks);
  parallel_for(chunks.total(), kGrain, threads, [&](int64_t begin, int64_t end) {
    chunks.for_each_run(begin, end, [&](int64_t row, int64_t, int64_t length) {
      std::fill_n(table + row, length, value);
    });
  });
}

void write_unchecked(const Table& table, const Ranges& chunks, int64_t first, const Rows& rows,
                     int threads) {
  if (table.num_cols == 0) return;
  const int64_t table_stride = row_bytes(table.dtype, table.num_cols);
  const bool streamed = is_streamed(table.data, table_stride, rows.num_rows);
  with_copy(rows.dtype, table.dtype, table.num_cols, streamed, [&](auto copy) {
    for_each_run(table, chunks, first, rows, streamed, threads,
                 [&](char* there, char* here, int64_t n) { copy(there, here, n); });
  });
}

template void check_distinct(const char*, const int32_t*, int64_t, int64_t, int);
template void check_distinct(const char*, const int64_t*, int64_t, int64_t, int);
template void scatter_unchecked(const Table&, const int32_t*, const Rows&, int);
template void scatter_unchecked(const Table&, const int64_t*, const Rows&, int);
template void gather_unchecked(const Table&, const int32_t*, const Rows&, int);
template void gather_unchecked(const Table&, const int64_t*, const Rows&, int);
template void add_rows(const Table&, const int32_t*, const Rows&, int);
template void add_rows(const Table&, const int64_t*, const Rows&, int);

}  // namespace torch_gas
