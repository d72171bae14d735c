// Rows between a table in pageable host memory and a CUDA device, by way of a pinned buffer.
//
// The buffer has two halves. A pull gathers one chunk of rows into a half (a host function on the
// staging stream, which runs the loops of cpu/rows.h) while the other half is copied to the device
// (on the stream of the call); a push does the reverse. Events order the two streams, and the
// host thread that calls waits for nothing. Everything is checked before the first piece of work is
// queued, so host functions cannot fail but for a file. Index, offset and count are copied; table
// and buffer must live until the stream of the call has come past it.
//
// A table in a file is read and written by the host functions as well. What the system refuses them
// is noted (cpu/file.h), because nobody waits for them.
//
// Work queued on the stream of the call before it is seen, and work queued after it finds all done.
// Calls that share a buffer, from whatever streams, run one after the other.
#pragma once

#include <cstdint>

#include "../cpu/file.h"
#include "rows.h"

namespace torch_gas::cuda {

struct Staging {
  char* buffer;   // pinned, and aligned like the elements of rows
  int64_t bytes;  // at least two rows
  void* stream;   // on which the halves are filled or emptied
};

// rows[i] = table[index[i]]; rows are in device memory, everything else is in host memory or, if T
// is FileTable, in a file.
template <class T, class I>
void staged_gather_rows(const T& table, const I* index, const Rows& rows, const Stream& stream,
                        const Staging& staging, int threads);

template <class T>
void staged_read_chunks(const T& table, const int64_t* offset, const int64_t* count,
                        int64_t num_chunks, const Rows& rows, const Stream& stream,
                        const Staging& staging, int threads);

template <class T>
void staged_write_chunks(const T& table, const int64_t* offset, const int64_t* count,
                         int64_t num_chunks, const Rows& rows, const Stream& stream,
                         const Staging& staging, int threads);

}  // namespace torch_gas::cuda
