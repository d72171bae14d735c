// The calls of cpu/rows.h on a CUDA stream.
//
// Tables are in device memory or in pinned host memory, which kernels read and write in place
// through unified addressing; rows and index are in device memory, offset and count in host memory.
// Calls return at once. The host cannot see the ids of `index`: a kernel asserts that they are in
// range, and that those of a scatter are distinct is for the caller to see.
#pragma once

#include <cstdint>

#include "../cpu/rows.h"

namespace torch_gas::cuda {

struct Index {
  const void* ids;
  int bits;  // 32 or 64
};

struct Stream {
  int device;
  void* handle;
};

// `host_table` says that the table is in host memory: a few multiprocessors fill the link to it,
// and the others are left to the model.
void gather_rows(const Table& table, const Index& index, const Rows& rows, const Stream& stream,
                 bool host_table);
void scatter_rows(const Table& table, const Index& index, const Rows& rows, const Stream& stream,
                  bool host_table);
// Ids must not descend, which the kernel asserts; `order` says which row of `rows` each id is of,
// or is null where they are in order.
void add_rows(const Table& table, const Index& index, const int64_t* order, const Rows& rows,
              const Stream& stream, bool host_table);
void read_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                 int64_t num_chunks, const Rows& rows, const Stream& stream, bool host_table);
void write_chunks(const Table& table, const int64_t* offset, const int64_t* count,
                  int64_t num_chunks, const Rows& rows, const Stream& stream, bool host_table);

}  // namespace torch_gas::cuda
