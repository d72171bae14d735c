// Ranges of rows: the contiguous parts of a batch, one after the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "check.h"

namespace torch_gas {

// The pieces of a loop over `size` items that each need memory of their own: as many as there are
// threads, but none of fewer than `least` items.
struct Pieces {
  int64_t size, count;

  Pieces(int64_t size, int64_t least, int threads)
      : size(size), count(std::clamp<int64_t>(size / least, 1, std::max(threads, 1))) {}
  int64_t begin(int64_t piece) const {
    return size / count * piece + std::min(piece, size % count);
  }
};

struct Ranges {
  std::vector<int64_t> start;  // [P] first item of each range
  std::vector<int64_t> first;  // [P+1] its position when all ranges are laid end to end

  int64_t size() const { return static_cast<int64_t>(start.size()); }
  int64_t total() const { return first.back(); }
  int64_t count(int64_t p) const { return first[p + 1] - first[p]; }

  // The range that a position lies in.
  int64_t range_of(int64_t position) const {
    return std::upper_bound(first.begin(), first.end(), position) - first.begin() - 1;
  }

  // Calls f(source, position, length) on the runs that make up positions [begin, end).
  template <class F>
  void for_each_run(int64_t begin, int64_t end, const F& f) const {
    int64_t p = range_of(begin);
    while (begin < end) {
      const int64_t stop = std::min(end, first[p + 1]);
      if (begin < stop) f(start[p] + (begin - first[p]), begin, stop - begin);
      begin = std::max(begin, stop);
      ++p;
    }
  }
};

// The ranges [start[p], start[p] + count[p]), each inside [0, bound).
inline Ranges make_ranges(const char* call, const char* start_name, const int64_t* start,
                          const int64_t* count, int64_t num_ranges, int64_t bound) {
  Ranges ranges;
  ranges.start.assign(start, start + num_ranges);
  ranges.first.assign(1, 0);
  for (int64_t p = 0; p < num_ranges; ++p) {
    check_index(start[p] >= 0 && count[p] >= 0 && start[p] <= bound && count[p] <= bound - start[p],
                Call{call}, ": every range must lie in [0, ", bound, "), but range ", p, " has `",
                Argument{start_name}, "` ", start[p], " and `", Argument{"count"}, "` ", count[p]);
    ranges.first.push_back(ranges.first.back() + count[p]);
  }
  return ranges;
}

// Refuses ranges that share an item.
inline void check_disjoint(const char* call, const char* start_name, const Ranges& ranges) {
  std::vector<int64_t> order;
  for (int64_t p = 0; p < ranges.size(); ++p) {
    if (ranges.count(p) > 0) order.push_back(p);
  }
  std::sort(order.begin(), order.end(),
            [&](int64_t p, int64_t q) { return ranges.start[p] < ranges.start[q]; });
  for (size_t i = 1; i < order.size(); ++i) {
    const auto [p, q] = std::minmax(order[i - 1], order[i]);
    check_value(ranges.start[order[i - 1]] + ranges.count(order[i - 1]) <= ranges.start[order[i]],
                Call{call}, ": ranges must not overlap, but ranges ", p, " and ", q, " do (`",
                Argument{start_name}, "` ", ranges.start[p], " and ", ranges.start[q], ", `",
                Argument{"count"}, "` ", ranges.count(p), " and ", ranges.count(q),
                "); pass every part once");
  }
}

// Joins each range with the one before where it continues it.
inline Ranges merge_adjacent(const Ranges& ranges) {
  Ranges merged;
  merged.first.assign(1, 0);
  for (int64_t p = 0; p < ranges.size(); ++p) {
    if (ranges.count(p) == 0) continue;
    if (merged.size() > 0 &&
        merged.start.back() + merged.count(merged.size() - 1) == ranges.start[p]) {
      merged.first.back() = ranges.first[p + 1];
    } else {
      merged.start.push_back(ranges.start[p]);
      merged.first.push_back(ranges.first[p + 1]);
    }
  }
  return merged;
}

}  // namespace torch_gas
