#include "file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace torch_gas {
namespace {

// Rows that are fewer bytes apart are read together: the page between them is read anyway.
constexpr int64_t kGap = 4096;

// Bytes that one call moves by way of a block, which stays in the caches.
constexpr int64_t kBlock = int64_t{256} << 10;

// Bytes that one request of read_ahead() spans; the system cuts what is longer than its limit.
constexpr int64_t kAhead = int64_t{2} << 20;

[[noreturn]] void fail(const char* call, int code) {
  throw FileError(code, message(call, ": ", std::strerror(code)));
}

int64_t stride_of(const FileTable& table) {
  return row_bytes(table.dtype, table.num_cols);
}

int64_t place_of(const FileTable& table, int64_t row) {
  return table.offset + row * stride_of(table);
}

void read_bytes(const FileTable& table, char* to, int64_t bytes, int64_t place) {
  while (bytes > 0) {
    const ssize_t done = pread(table.file, to, bytes, place);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("pread", errno);
    if (done == 0) {
      throw FileError(EIO, message("pread: the file ends at byte ", place,
                                   ", before the last row: it was cut while it was in use"));
    }
    to += done, place += done, bytes -= done;
  }
}

void write_bytes(const FileTable& table, const char* from, int64_t bytes, int64_t place) {
  while (bytes > 0) {
    const ssize_t done = pwrite(table.file, from, bytes, place);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("pwrite", done < 0 ? errno : EIO);
    from += done, place += done, bytes -= done;
  }
}

int64_t rows_in(int64_t bytes, int64_t stride) {
  return std::max<int64_t>(1, bytes / std::max<int64_t>(1, stride));
}

// Calls f(begin, end) on runs of ids that lie near each other in the file and span a block at most.
// `adjacent` asks for runs without gaps.
template <class I, class F>
void for_each_run(const I* index, int64_t begin, int64_t end, int64_t stride, int64_t most_bytes,
                  bool adjacent, const F& f) {
  const int64_t most = rows_in(most_bytes, stride);
  const int64_t gap = adjacent ? 1 : 1 + kGap / std::max<int64_t>(1, stride);
  while (begin < end) {
    int64_t stop = begin + 1;
    while (stop < end && index[stop] > index[stop - 1] && index[stop] - index[stop - 1] <= gap &&
           index[stop] - index[begin] < most) {
      ++stop;
    }
    f(begin, stop);
    begin = stop;
  }
}

void read_rows(const FileTable& table, int64_t row, int64_t num_rows, DType to_type, char* to,
               std::vector<char>& block) {
  const int64_t stride = stride_of(table), to_stride = row_bytes(to_type, table.num_cols);
  if (table.dtype == to_type) return read_bytes(table, to, num_rows * stride, place_of(table, row));
  for (int64_t i = 0, most = rows_in(kBlock, stride); i < num_rows; i += most) {
    const int64_t n = std::min(most, num_rows - i);
    block.resize(std::max<size_t>(block.size(), n * stride));
    read_bytes(table, block.data(), n * stride, place_of(table, row + i));
    convert_rows(to + i * to_stride, to_type, block.data(), table.dtype, n, table.num_cols);
  }
}

void write_rows(const FileTable& table, int64_t row, int64_t num_rows, DType from_type,
                const char* from, std::vector<char>& block) {
  const int64_t stride = stride_of(table), from_stride = row_bytes(from_type, table.num_cols);
  if (table.dtype == from_type) {
    return write_bytes(table, from, num_rows * stride, place_of(table, row));
  }
  for (int64_t i = 0, most = rows_in(kBlock, stride); i < num_rows; i += most) {
    const int64_t n = std::min(most, num_rows - i);
    block.resize(std::max<size_t>(block.size(), n * stride));
    convert_rows(block.data(), table.dtype, from + i * from_stride, from_type, n, table.num_cols);
    write_bytes(table, block.data(), n * stride, place_of(table, row + i));
  }
}

// Calls move(row, position, length, block) on runs that make up `rows`, the rows of `chunks` from
// position `first` on.
template <class F>
void for_each_range(const FileTable& table, const Ranges& chunks, int64_t first, const Rows& rows,
                    int threads, const F& move) {
  const int64_t grain = rows_in(kBlock, row_bytes(rows.dtype, table.num_cols));
  parallel_for(rows.num_rows, grain, threads, [&](int64_t begin, int64_t end) {
    std::vector<char> block;
    chunks.for_each_run(first + begin, first + end,
                        [&](int64_t row, int64_t position, int64_t length) {
                          move(row, position - first, length, block);
                        });
  });
}

// Ids that stay as they are while runs of them are looked for.
template <class I>
std::vector<I> kept(const char* call, const I* index, int64_t size, int64_t num_rows) {
  std::vector<I> ids(index, index + size);
  for (const I id : ids) check_unchanged(in_range(id, num_rows), call);
  return ids;
}

std::mutex failures_mutex;
std::map<int, std::string> failures;  // by descriptor

}  // namespace

template <class I>
void gather_unchecked(const FileTable& table, const I* index, const Rows& rows, int threads) {
  const int64_t stride = stride_of(table), to_stride = row_bytes(rows.dtype, table.num_cols);
  const int64_t grain = std::max<int64_t>(1, rows_in(kBlock, stride) / 4);
  const std::vector<I> ids = kept("gather_rows", index, rows.num_rows, table.num_rows);
  parallel_for(rows.num_rows, grain, threads, [&](int64_t begin, int64_t end) {
    std::vector<char> block;
    for_each_run(ids.data(), begin, end, stride, kBlock, false, [&](int64_t from, int64_t to) {
      const int64_t row = ids[from], span = ids[to - 1] - row + 1;
      if (span == to - from && table.dtype == rows.dtype) {
        return read_bytes(table, rows.data + from * to_stride, span * stride, place_of(table, row));
      }
      block.resize(std::max<size_t>(block.size(), span * stride));
      read_bytes(table, block.data(), span * stride, place_of(table, row));
      for (int64_t i = from; i < to; ++i) {
        convert_rows(rows.data + i * to_stride, rows.dtype, block.data() + (ids[i] - row) * stride,
                     table.dtype, 1, table.num_cols);
      }
    });
  });
}

template <class I>
void scatter_unchecked(const FileTable& table, const I* index, const Rows& rows, int) {
  const int64_t from_stride = row_bytes(rows.dtype, table.num_cols);
  const std::vector<I> ids = kept("scatter_rows", index, rows.num_rows, table.num_rows);
  std::vector<char> block;
  for_each_run(
      ids.data(), 0, rows.num_rows, stride_of(table), kBlock, true, [&](int64_t from, int64_t to) {
        write_rows(table, ids[from], to - from, rows.dtype, rows.data + from * from_stride, block);
      });
}

void read_unchecked(const FileTable& table, const Ranges& chunks, int64_t first, const Rows& rows,
                    int threads) {
  const int64_t stride = row_bytes(rows.dtype, table.num_cols);
  for_each_range(table, chunks, first, rows, threads,
                 [&](int64_t row, int64_t position, int64_t length, std::vector<char>& block) {
                   char* to = rows.data + position * stride;
                   read_rows(table, row, length, rows.dtype, to, block);
                 });
}

void write_unchecked(const FileTable& table, const Ranges& chunks, int64_t first, const Rows& rows,
                     int threads) {
  const int64_t stride = row_bytes(rows.dtype, table.num_cols);
  for_each_range(table, chunks, first, rows, threads,
                 [&](int64_t row, int64_t position, int64_t length, std::vector<char>& block) {
                   const char* from = rows.data + position * stride;
                   write_rows(table, row, length, rows.dtype, from, block);
                 });
}

template <class I>
void read_ahead(const FileTable& table, const I* index, int64_t num_ids) {
  check_ids("read_ahead", "index", index, num_ids, table.num_rows, 1);
#ifdef POSIX_FADV_WILLNEED
  const int64_t stride = stride_of(table);
  for_each_run(index, 0, num_ids, stride, kAhead, false, [&](int64_t from, int64_t to) {
    const int64_t bytes = (index[to - 1] - index[from] + 1) * stride;
    posix_fadvise(table.file, place_of(table, index[from]), bytes, POSIX_FADV_WILLNEED);
  });
#endif
}

void clear_rows(const FileTable& table, const int64_t* offset, const int64_t* count,
                int64_t num_chunks) {
  const Ranges ranges = merge_adjacent(
      make_ranges("clear_rows", "offset", offset, count, num_chunks, table.num_rows));
  const int64_t stride = stride_of(table);
  const std::vector<char> zeros(kBlock);
  for (int64_t p = 0; p < ranges.size(); ++p) {
    int64_t place = place_of(table, ranges.start[p]), bytes = ranges.count(p) * stride;
#ifdef FALLOC_FL_PUNCH_HOLE
    const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (bytes == 0 || fallocate(table.file, mode, place, bytes) == 0) continue;
#endif
    for (int64_t n = 0; bytes > 0; place += n, bytes -= n) {
      n = std::min(kBlock, bytes);
      write_bytes(table, zeros.data(), n, place);
    }
  }
}

void note_failure(int file, const char* what) {
  const std::lock_guard<std::mutex> lock(failures_mutex);
  failures.emplace(file, what);  // the first one stays
}

std::string noted_failure(int file) {
  const std::lock_guard<std::mutex> lock(failures_mutex);
  const auto found = failures.find(file);
  return found == failures.end() ? "" : found->second;
}

void forget_failure(int file) {
  const std::lock_guard<std::mutex> lock(failures_mutex);
  failures.erase(file);
}

template void scatter_unchecked(const FileTable&, const int32_t*, const Rows&, int);
template void scatter_unchecked(const FileTable&, const int64_t*, const Rows&, int);
template void gather_unchecked(const FileTable&, const int32_t*, const Rows&, int);
template void gather_unchecked(const FileTable&, const int64_t*, const Rows&, int);
template void read_ahead(const FileTable&, const int32_t*, int64_t);
template void read_ahead(const FileTable&, const int64_t*, int64_t);

}  // namespace torch_gas
