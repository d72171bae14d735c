// Rows between a table [N, C] in a file and a batch in host memory.
//
// Rows are read and written by system calls and not through a mapping: a disk that is full or fails
// is then an error and no signal, and a table may be larger than the memory or the address space of
// the process. Both go through the page cache of the system. Rows of a batch that are near each
// other in the file make one call.
//
// Arguments are those of rows.h; all of them are checked before anything is written. A call that
// fails in the system throws FileError, and may have written some rows.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "rows.h"

namespace torch_gas {

struct FileTable {
  int file;        // descriptor of an open file
  int64_t offset;  // of the first row, in bytes
  DType dtype;
  int64_t num_rows;
  int64_t num_cols;
};

// What the system refused; `code` is errno.
class FileError : public std::runtime_error {
 public:
  FileError(int code, const std::string& what) : std::runtime_error(what), code(code) {}
  const int code;
};

// The loops of the calls in rows.h.
template <class I>
void gather_unchecked(const FileTable& table, const I* index, const Rows& rows, int threads);
template <class I>
void scatter_unchecked(const FileTable& table, const I* index, const Rows& rows, int threads);
void read_unchecked(const FileTable& table, const Ranges& chunks, int64_t first, const Rows& rows,
                    int threads);
void write_unchecked(const FileTable& table, const Ranges& chunks, int64_t first, const Rows& rows,
                     int threads);

// Asks the system to read rows into the page cache while the caller goes on. `index` should ascend.
template <class I>
void read_ahead(const FileTable& table, const I* index, int64_t num_ids);

// Makes the rows of ranges zero; gives their place on the disk back where the system can do so.
void clear_rows(const FileTable& table, const int64_t* offset, const int64_t* count,
                int64_t num_chunks);

// What went wrong in calls that nobody waits for, by the file's descriptor; empty if nothing did.
void note_failure(int file, const char* what);
std::string noted_failure(int file);
void forget_failure(int file);

}  // namespace torch_gas
