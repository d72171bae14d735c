// Argument checks that name the call and the argument. `std::invalid_argument` becomes ValueError
// in Python and `std::out_of_range` becomes IndexError.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "naming.h"
#include "parallel.h"

namespace torch_gas {

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
void check_value(bool ok, const Parts&... parts) {
  if (!ok) throw std::invalid_argument(message(parts...));
}

template <class... Parts>
void check_index(bool ok, const Parts&... parts) {
  if (!ok) throw std::out_of_range(message(parts...));
}

// Checks 0 <= id < bound for a negative or too large id in one comparison.
inline bool in_range(int64_t id, int64_t bound) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(bound);
}

// Refuses the id at the position that a loop over ids has reported, if any.
template <class T>
void check_reported(const FirstBad& bad, const char* call, const char* name, const T* ids,
                    int64_t bound) {
  if (!bad.found()) return;
  const int64_t i = bad.position();
  check_index(false, Call{call}, ": every id in `", Argument{name}, "` must be in [0, ", bound,
              "), but ", Argument{name}, "[", i, "] is ", ids[i]);
}

// Reads an id once, so that the one that is checked is the one that is used, though another thread
// writes to it meanwhile.
template <class T>
int64_t load_id(const T* id) {
  return __atomic_load_n(id, __ATOMIC_RELAXED);
}

template <class T>
void check_ids(const char* call, const char* name, const T* ids, int64_t size, int64_t bound,
               int threads) {
  constexpr int64_t kBlock = 512;
  FirstBad bad;
  parallel_for(size, kGrain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t stop = std::min(i + kBlock, end);
      // An id in range and its distance to the last one have no sign: a loop without branches.
      uint64_t signs = 0;
      for (int64_t j = i; j < stop; ++j) {
        const auto id = static_cast<uint64_t>(static_cast<int64_t>(ids[j]));
        signs |= id | (static_cast<uint64_t>(bound) - 1 - id);
      }
      if (signs >> 63 == 0) continue;
      for (int64_t j = i; j < stop; ++j) {
        if (!in_range(ids[j], bound)) return bad.report(j);
      }
    }
  });
  check_reported(bad, call, name, ids, bound);
}

// Checks rows [begin, end) of row pointers into `num_edges` entries.
template <class T>
void check_rowptr(const char* call, const T* rowptr, int64_t begin, int64_t end, int64_t num_edges,
                  int threads) {
  FirstBad bad;
  parallel_for(end - begin, kGrain, threads, [&](int64_t b, int64_t e) {
    for (int64_t i = begin + b; i < begin + e; ++i) {
      if (rowptr[i] < 0 || rowptr[i] > rowptr[i + 1] || rowptr[i + 1] > num_edges) {
        return bad.report(i);
      }
    }
  });
  if (bad.found()) {
    const int64_t i = bad.position();
    check_value(false, call, ": `rowptr` must ascend from 0 to the length of `col` (", num_edges,
                "), but rowptr[", i, "] is ", rowptr[i], " and rowptr[", i + 1, "] is ",
                rowptr[i + 1]);
  }
}

// Checks that row pointers cover all edges, as those of a batch need not.
template <class T>
void check_whole(const char* call, const T* rowptr, int64_t num_rows, int64_t num_edges) {
  check_value(rowptr[0] == 0 && rowptr[num_rows] == num_edges, call,
              ": `rowptr` must ascend from 0 to the length of `col` (", num_edges,
              "), but goes from ", rowptr[0], " to ", rowptr[num_rows]);
}

}  // namespace torch_gas
