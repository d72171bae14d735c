#include "symmetric.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "../check.h"
#include "../parallel.h"

namespace torch_gas {
namespace {

template <class T>
void check_edges(const Edges<T>& edges, int64_t num_nodes, int threads) {
  if (edges.rowptr != nullptr) {
    check_rowptr("adjacent_pairs", edges.rowptr, 0, num_nodes, edges.size, threads);
    check_whole("adjacent_pairs", edges.rowptr, num_nodes, edges.size);
  } else {
    check_ids("adjacent_pairs", "dst", edges.dst, edges.size, num_nodes, threads);
  }
  check_ids("adjacent_pairs", "src", edges.src, edges.size, num_nodes, threads);
}

// Calls body(edge, smaller node, larger node) for the edges begin .. end-1 that count.
template <class T, class Body>
void for_each_pair(const Edges<T>& edges, const double* weight, int64_t num_nodes, int64_t begin,
                   int64_t end, const Body& body) {
  const auto visit = [&](int64_t e, int64_t dst) {
    const int64_t src = edges.src[e];
    if (src == dst || (weight != nullptr && !(weight[e] > 0))) return;
    body(e, std::min(src, dst), std::max(src, dst));
  };
  if (edges.rowptr == nullptr) {
    for (int64_t e = begin; e < end; ++e) visit(e, edges.dst[e]);
    return;
  }
  int64_t row = std::upper_bound(edges.rowptr, edges.rowptr + num_nodes + 1, begin) - edges.rowptr;
  for (int64_t e = begin; e < end; ++row) {
    for (const int64_t stop = std::min<int64_t>(end, edges.rowptr[row]); e < stop; ++e) {
      visit(e, row - 1);
    }
  }
}

// counter++, which other threads may do as well if it is shared.
inline int64_t take(int64_t& counter, bool shared) {
  return shared ? __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED) : counter++;
}

template <class Id>
void sort_row(Id* col, double* weight, int64_t size, std::vector<std::pair<Id, double>>& entries) {
  if (weight == nullptr) return std::sort(col, col + size);
  entries.resize(size);
  for (int64_t i = 0; i < size; ++i) entries[i] = {col[i], weight[i]};
  // By weight as well, so that sums do not depend on the order in which threads wrote.
  std::sort(entries.begin(), entries.end());
  for (int64_t i = 0; i < size; ++i) std::tie(col[i], weight[i]) = entries[i];
}

}  // namespace

template <class T, class Id>
int64_t adjacent_pairs(const Edges<T>& edges, const double* weight, int64_t num_nodes,
                       int64_t* out_rowptr, Id* out_col, double* out_weight, int threads) {
  check_edges(edges, num_nodes, threads);
  check_value(num_nodes <= std::numeric_limits<Id>::max(), "adjacent_pairs: ", num_nodes,
              " nodes do not fit 32-bit ids; use 64-bit ones");

  // While rows are filled, end[r] is where the next entry of row r goes.
  int64_t* const end = out_rowptr + 1;
  const bool shared = threads > 1 && edges.size > kGrain;
  std::fill(out_rowptr, out_rowptr + num_nodes + 1, 0);
  parallel_for(edges.size, kGrain, threads, [&](int64_t b, int64_t e) {
    for_each_pair(edges, weight, num_nodes, b, e,
                  [&](int64_t, int64_t low, int64_t) { take(end[low], shared); });
  });
  int64_t first = 0;
  for (int64_t r = 0; r < num_nodes; ++r) first += std::exchange(end[r], first);
  parallel_for(edges.size, kGrain, threads, [&](int64_t b, int64_t e) {
    for_each_pair(edges, weight, num_nodes, b, e, [&](int64_t edge, int64_t low, int64_t high) {
      const int64_t position = take(end[low], shared);
      out_col[position] = static_cast<Id>(high);
      if (weight != nullptr) out_weight[position] = weight[edge];
    });
  });

  parallel_for(num_nodes, kGrain / 16, threads, [&](int64_t b, int64_t e) {
    std::vector<std::pair<Id, double>> entries;
    for (int64_t r = b; r < e; ++r) {
      const int64_t start = out_rowptr[r];
      sort_row(out_col + start, weight == nullptr ? nullptr : out_weight + start, end[r] - start,
               entries);
    }
  });
  int64_t size = 0, start = 0;
  for (int64_t r = 0; r < num_nodes; ++r) {
    const int64_t stop = end[r], row = size;
    for (int64_t i = start; i < stop; ++i) {
      if (size > row && out_col[size - 1] == out_col[i]) {
        if (weight != nullptr) out_weight[size - 1] += out_weight[i];
        continue;
      }
      out_col[size] = out_col[i];
      if (weight != nullptr) out_weight[size] = out_weight[i];
      ++size;
    }
    end[r] = size;
    start = stop;
  }
  return size;
}

template <class Id>
void symmetric(const int64_t* rowptr, const Id* col, const int64_t* weight, int64_t num_nodes,
               int64_t num_pairs, Id* out_rowptr, Id* out_col, Id* out_weight) {
  check_rowptr("symmetric", rowptr, 0, num_nodes, num_pairs, 1);
  check_whole("symmetric", rowptr, num_nodes, num_pairs);
  check_ids("symmetric", "col", col, num_pairs, num_nodes, 1);
  check_value(2 * num_pairs <= std::numeric_limits<Id>::max(), "symmetric: ", 2 * num_pairs,
              " edges do not fit 32-bit row pointers; use 64-bit ids");
  // While rows are filled, end[r] is where the next entry of row r goes.
  Id* const end = out_rowptr + 1;
  out_rowptr[0] = 0;
  for (int64_t r = 0; r < num_nodes; ++r) end[r] = static_cast<Id>(rowptr[r + 1] - rowptr[r]);
  for (int64_t i = 0; i < num_pairs; ++i) ++end[col[i]];
  Id first = 0;
  for (int64_t r = 0; r < num_nodes; ++r) first += std::exchange(end[r], first);
  const auto add = [&](int64_t r, Id c, int64_t i) {
    const Id position = end[r]++;
    out_col[position] = c;
    if (weight != nullptr) out_weight[position] = static_cast<Id>(weight[i]);
  };
  // Rows ascend: smaller neighbours come to a row in their order, and before its larger ones.
  for (int64_t r = 0; r < num_nodes; ++r) {
    for (int64_t i = rowptr[r]; i < rowptr[r + 1]; ++i) {
      add(r, col[i], i);
      add(col[i], static_cast<Id>(r), i);
    }
  }
}

#define TORCH_GAS_INSTANTIATE(T, Id)                                                               \
  template int64_t adjacent_pairs(const Edges<T>&, const double*, int64_t, int64_t*, Id*, double*, \
                                  int);
TORCH_GAS_INSTANTIATE(int32_t, int32_t)
TORCH_GAS_INSTANTIATE(int32_t, int64_t)
TORCH_GAS_INSTANTIATE(int64_t, int32_t)
TORCH_GAS_INSTANTIATE(int64_t, int64_t)
#undef TORCH_GAS_INSTANTIATE
template void symmetric(const int64_t*, const int32_t*, const int64_t*, int64_t, int64_t, int32_t*,
                        int32_t*, int32_t*);
template void symmetric(const int64_t*, const int64_t*, const int64_t*, int64_t, int64_t, int64_t*,
                        int64_t*, int64_t*);

}  // namespace torch_gas
