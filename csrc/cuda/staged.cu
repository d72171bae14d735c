#include <algorithm>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"
#include "staged.h"

namespace torch_gas::cuda {
namespace {

// Moves the rows of a call from position `first` on between its table and a half of the buffer.
using Move = std::function<void(int64_t first, const Rows& half)>;

// What one host function does. The last one of a call frees its Move, and with it ids and ranges.
struct Chunk {
  std::shared_ptr<const Move> move;
  int64_t first;
  Rows half;
};

void CUDART_CB run_chunk(void* data) noexcept {
  const std::unique_ptr<Chunk> chunk(static_cast<Chunk*>(data));
  (*chunk->move)(chunk->first, chunk->half);
}

class Event {
 public:
  Event() {
    check_cuda(cudaEventCreateWithFlags(&handle_, cudaEventDisableTiming),
               "cudaEventCreateWithFlags");
  }
  ~Event() { cudaEventDestroy(handle_); }  // CUDA keeps it for the streams that wait for it
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) {
    check_cuda(cudaEventRecord(handle_, stream), "cudaEventRecord");
  }
  // Makes `stream` wait for what was recorded.
  void hold(cudaStream_t stream) {
    check_cuda(cudaStreamWaitEvent(stream, handle_, 0), "cudaStreamWaitEvent");
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

// One call: rows in chunks that fill a half of the buffer, the halves in turn.
class Transfer {
 public:
  Transfer(int64_t num_cols, const Rows& rows, const Stream& stream, const Staging& staging)
      : rows_(rows),
        row_bytes_(row_bytes(rows.dtype, num_cols)),
        buffer_(staging.buffer),
        buffer_bytes_(staging.bytes),
        device_(stream.device),
        stream_(static_cast<cudaStream_t>(stream.handle)),
        staging_(static_cast<cudaStream_t>(staging.stream)) {}

  void pull(Move move) {
    if (empty()) return;
    const DeviceGuard guard(device_);
    Event filled[2], copied[2];
    // The first host function runs after the work before this call, which may write the table.
    for (Event& event : copied) event.record(stream_);
    for_each_chunk(std::move(move), [&](int half, std::unique_ptr<Chunk> chunk) {
      const Rows part = chunk->half;
      char* target = rows_.data + chunk->first * row_bytes_;
      copied[half].hold(staging_);
      launch(std::move(chunk));
      filled[half].record(staging_);
      filled[half].hold(stream_);
      copy(target, part.data, part.num_rows);
      copied[half].record(stream_);
    });
    // The next call may come from another stream, and finds both halves free.
    for (Event& event : copied) event.hold(staging_);
  }

  void push(Move move) {
    if (empty()) return;
    const DeviceGuard guard(device_);
    Event filled[2], emptied[2];
    // The last call may have come from another stream, and still use the halves.
    for (Event& event : emptied) event.record(staging_);
    for_each_chunk(std::move(move), [&](int half, std::unique_ptr<Chunk> chunk) {
      const char* source = rows_.data + chunk->first * row_bytes_;
      emptied[half].hold(stream_);
      copy(chunk->half.data, source, chunk->half.num_rows);
      filled[half].record(stream_);
      filled[half].hold(staging_);
      launch(std::move(chunk));
      emptied[half].record(staging_);
    });
    // The table is written when the stream comes past this call.
    for (Event& event : emptied) event.hold(stream_);
  }

 private:
  bool empty() const { return rows_.num_rows == 0 || row_bytes_ == 0; }

  template <class F>
  void for_each_chunk(Move move, const F& f) const {
    const auto shared = std::make_shared<const Move>(std::move(move));
    const int64_t size = buffer_bytes_ / 2 / row_bytes_;
    int half = 0;
    for (int64_t first = 0; first < rows_.num_rows; first += size, half = 1 - half) {
      const int64_t num_rows = std::min(size, rows_.num_rows - first);
      const Rows part{buffer_ + half * size * row_bytes_, rows_.dtype, num_rows};
      f(half, std::unique_ptr<Chunk>(new Chunk{shared, first, part}));
    }
  }

  void launch(std::unique_ptr<Chunk> chunk) const {
    check_cuda(cudaLaunchHostFunc(staging_, run_chunk, chunk.get()), "cudaLaunchHostFunc");
    chunk.release();  // run_chunk frees it
  }

  void copy(char* to, const char* from, int64_t num_rows) const {
    check_cuda(cudaMemcpyAsync(to, from, num_rows * row_bytes_, cudaMemcpyDefault, stream_),
               "cudaMemcpyAsync");
  }

  const Rows rows_;
  const int64_t row_bytes_;
  char* const buffer_;
  const int64_t buffer_bytes_;
  const int device_;
  const cudaStream_t stream_;
  const cudaStream_t staging_;
};

// Host functions must not throw: what goes wrong with a file is noted, and the next call on it
// fails.
template <class F>
Move noting(const Table&, F move) {
  return move;
}
template <class F>
Move noting(const FileTable& table, F move) {
  return [file = table.file, move = std::move(move)](int64_t first, const Rows& half) {
    try {
      move(first, half);
    } catch (const std::exception& error) {
      note_failure(file, error.what());
    }
  };
}

}  // namespace

template <class T, class I>
void staged_gather_rows(const T& table, const I* index, const Rows& rows, const Stream& stream,
                        const Staging& staging, int threads) {
  std::vector<I> ids(index, index + rows.num_rows);  // first: others may change those
  check_ids("gather_rows", "index", ids.data(), rows.num_rows, table.num_rows, threads);
  Transfer(table.num_cols, rows, stream, staging)
      .pull(noting(table, [table, ids = std::move(ids), threads](int64_t first, const Rows& half) {
        gather_unchecked(table, ids.data() + first, half, threads);
      }));
}

template <class T>
void staged_read_chunks(const T& table, const int64_t* offset, const int64_t* count,
                        int64_t num_chunks, const Rows& rows, const Stream& stream,
                        const Staging& staging, int threads) {
  Ranges chunks = chunk_ranges("read_chunks", table.num_rows, offset, count, num_chunks, rows);
  Transfer(table.num_cols, rows, stream, staging)
      .pull(noting(table,
                   [table, chunks = std::move(chunks), threads](int64_t first, const Rows& half) {
                     read_unchecked(table, chunks, first, half, threads);
                   }));
}

template <class T>
void staged_write_chunks(const T& table, const int64_t* offset, const int64_t* count,
                         int64_t num_chunks, const Rows& rows, const Stream& stream,
                         const Staging& staging, int threads) {
  Ranges chunks =
      disjoint_chunk_ranges("write_chunks", table.num_rows, offset, count, num_chunks, rows);
  Transfer(table.num_cols, rows, stream, staging)
      .push(noting(table,
                   [table, chunks = std::move(chunks), threads](int64_t first, const Rows& half) {
                     write_unchecked(table, chunks, first, half, threads);
                   }));
}

#define TORCH_GAS_STAGED(T)                                                                        \
  template void staged_gather_rows(const T&, const int32_t*, const Rows&, const Stream&,           \
                                   const Staging&, int);                                           \
  template void staged_gather_rows(const T&, const int64_t*, const Rows&, const Stream&,           \
                                   const Staging&, int);                                           \
  template void staged_read_chunks(const T&, const int64_t*, const int64_t*, int64_t, const Rows&, \
                                   const Stream&, const Staging&, int);                            \
  template void staged_write_chunks(const T&, const int64_t*, const int64_t*, int64_t,             \
                                    const Rows&, const Stream&, const Staging&, int);
TORCH_GAS_STAGED(Table)
TORCH_GAS_STAGED(FileTable)

}  // namespace torch_gas::cuda
