#include "subgraph.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <numeric>

namespace torch_gas {
namespace {

// A set of nodes, as a bitmap. Only a `shared` one may be added to by several threads at once.
class NodeSet {
 public:
  NodeSet(int64_t num_nodes, bool shared)
      : shared_(shared),
        num_words_((num_nodes + 63) / 64),
        words_(new std::atomic<uint64_t>[num_words_]()) {}

  int64_t num_words() const { return num_words_; }
  uint64_t word(int64_t w) const { return words_[w].load(std::memory_order_relaxed); }

  void add(int64_t node) {
    const uint64_t bit = uint64_t{1} << (node & 63);
    std::atomic<uint64_t>& word = words_[node >> 6];
    const uint64_t before = word.load(std::memory_order_relaxed);
    if (!shared_) {
      // A third of the time of an atomic update behind a branch that cannot be predicted.
      word.store(before | bit, std::memory_order_relaxed);
    } else if (!(before & bit)) {
      word.fetch_or(bit, std::memory_order_relaxed);  // rare: most sources have been seen before
    }
  }

  void remove_range(int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t stop = std::min(end, (begin | 63) + 1);
      const uint64_t low = ~uint64_t{0} << (begin & 63);
      const uint64_t high = ~uint64_t{0} >> (63 - ((stop - 1) & 63));
      words_[begin >> 6].fetch_and(~(low & high), std::memory_order_relaxed);
      begin = stop;
    }
  }

 private:
  bool shared_;
  int64_t num_words_;
  std::unique_ptr<std::atomic<uint64_t>[]> words_;
};

// The members of `set`, ascending; lookup[member] becomes `base` plus its rank.
template <class T>
std::vector<int64_t> ranked_members(const NodeSet& set, int64_t base, T* lookup, int threads) {
  constexpr int64_t kBlock = 2048;  // words
  const int64_t num_blocks = (set.num_words() + kBlock - 1) / kBlock;
  std::vector<int64_t> first(num_blocks + 1, 0);
  const auto block_end = [&](int64_t b) { return std::min((b + 1) * kBlock, set.num_words()); };
  parallel_for(num_blocks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t size = 0;
      for (int64_t w = b * kBlock; w < block_end(b); ++w) size += __builtin_popcountll(set.word(w));
      first[b + 1] = size;
    }
  });
  std::partial_sum(first.begin(), first.end(), first.begin());
  std::vector<int64_t> members(first.back());
  parallel_for(num_blocks, 1, threads, [&](int64_t begin, int64_t end) {
    int64_t rank = first[begin];
    for (int64_t w = begin * kBlock; w < block_end(end - 1); ++w) {
      for (uint64_t bits = set.word(w); bits != 0; bits &= bits - 1) {
        const int64_t node = w * 64 + __builtin_ctzll(bits);
        members[rank] = node;
        lookup[node] = static_cast<T>(base + rank);
        ++rank;
      }
    }
  });
  return members;
}

// Stable counting sort of items 0 .. size-1 by key. Writes ptr [num_keys+1], then calls
// emit(begin, end, cursor) on chunks of items; item i goes to position cursor[key[i]]++.
//
// Every chunk has a histogram of its own; chunk c starts, for each key, after the items of the
// chunks before it. So the result is the stable order for any number of chunks.
template <class T, class Emit>
void counting_sort(const T* key, int64_t size, int64_t num_keys, int threads, T* ptr,
                   const Emit& emit) {
  const int64_t worthwhile = size / std::max(num_keys, kGrain);
  const int64_t num_chunks = std::max<int64_t>(1, std::min<int64_t>(threads, worthwhile));
  const auto chunk_begin = [&](int64_t c) {
    return size / num_chunks * c + std::min(c, size % num_chunks);
  };
  std::vector<T> cursor(num_chunks * num_keys, 0);
  parallel_for(num_chunks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      T* histogram = cursor.data() + c * num_keys;
      for (int64_t i = chunk_begin(c); i < chunk_begin(c + 1); ++i) ++histogram[key[i]];
    }
  });
  T position = 0;
  for (int64_t k = 0; k < num_keys; ++k) {
    ptr[k] = position;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const T items = cursor[c * num_keys + k];
      cursor[c * num_keys + k] = position;
      position += items;
    }
  }
  ptr[num_keys] = position;
  parallel_for(num_chunks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      emit(chunk_begin(c), chunk_begin(c + 1), cursor.data() + c * num_keys);
    }
  });
}

}  // namespace

template <class T>
BatchRanges batch_ranges(const T* rowptr, int64_t num_nodes, int64_t num_edges,
                         const int64_t* start, const int64_t* count, int64_t num_ranges,
                         int threads) {
  BatchRanges batch;
  batch.rows = make_ranges("subgraph", "start", start, count, num_ranges, num_nodes);
  check_disjoint("subgraph", "start", batch.rows);
  std::vector<int64_t> edge_start, edge_count;
  for (int64_t p = 0; p < num_ranges; ++p) {
    const int64_t begin = start[p], end = start[p] + count[p];
    check_rowptr("subgraph", rowptr, begin, end, num_edges, threads);
    // An empty range may stand where no row pointer has been checked.
    edge_start.push_back(count[p] > 0 ? rowptr[begin] : 0);
    edge_count.push_back(count[p] > 0 ? rowptr[end] - rowptr[begin] : 0);
  }
  batch.edges = make_ranges("subgraph", "rowptr", edge_start.data(), edge_count.data(), num_ranges,
                            num_edges);
  return batch;
}

template <class T>
std::vector<int64_t> subgraph(const T* rowptr, const T* col, int64_t num_nodes,
                              const BatchRanges& batch, T* lookup, T* out_rowptr, T* out_col,
                              int64_t* out_e_id, int threads) {
  const Ranges &rows = batch.rows, &edges = batch.edges;

  NodeSet halo(num_nodes, threads > 1 && edges.total() > kGrain);
  FirstBad bad;  // position in `col`
  parallel_for(edges.total(), kGrain, threads, [&](int64_t begin, int64_t end) {
    edges.for_each_run(begin, end, [&](int64_t source, int64_t, int64_t length) {
      for (int64_t e = source; e < source + length; ++e) {
        if (!in_range(col[e], num_nodes)) return bad.report(e);
        halo.add(col[e]);
      }
    });
  });
  if (bad.found()) {
    const int64_t e = bad.position();
    check_index(false, "subgraph: every id in `col` must be in [0, ", num_nodes, "), but col[", e,
                "] is ", col[e]);
  }
  for (int64_t p = 0; p < rows.size(); ++p) {
    halo.remove_range(rows.start[p], rows.start[p] + rows.count(p));
  }

  std::vector<int64_t> halo_ids = ranked_members(halo, rows.total(), lookup, threads);
  parallel_for(rows.total(), kGrain, threads, [&](int64_t begin, int64_t end) {
    rows.for_each_run(begin, end, [&](int64_t node, int64_t local, int64_t length) {
      std::iota(lookup + node, lookup + node + length, static_cast<T>(local));
    });
  });

  // Inside a range, row pointers move by one constant.
  for (int64_t p = 0; p < rows.size(); ++p) {
    const T* from = rowptr + rows.start[p];
    const int64_t shift = edges.first[p] - edges.start[p];
    parallel_for(rows.count(p), kGrain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out_rowptr[rows.first[p] + i] = static_cast<T>(from[i] + shift);
      }
    });
  }
  out_rowptr[rows.total()] = static_cast<T>(edges.total());
  parallel_for(edges.total(), kGrain, threads, [&](int64_t begin, int64_t end) {
    edges.for_each_run(begin, end, [&](int64_t source, int64_t position, int64_t length) {
      for (int64_t i = 0; i < length; ++i) {
        out_col[position + i] = lookup[col[source + i]];
        out_e_id[position + i] = source + i;
      }
    });
  });
  return halo_ids;
}

template <class T>
void transpose(const T* rowptr, const T* col, int64_t num_rows, int64_t num_cols, int64_t nnz,
               T* out_colptr, T* out_row, int64_t* out_perm, int threads) {
  check_rowptr("transpose", rowptr, 0, num_rows, nnz, threads);
  check_whole("transpose", rowptr, num_rows, nnz);
  check_ids("transpose", "col", col, nnz, num_cols, threads);
  counting_sort(
      col, nnz, num_cols, threads, out_colptr, [&](int64_t begin, int64_t end, T* cursor) {
        int64_t row = std::upper_bound(rowptr, rowptr + num_rows + 1, begin) - rowptr - 1;
        for (int64_t e = begin; e < end; ++row) {
          for (const int64_t stop = std::min<int64_t>(end, rowptr[row + 1]); e < stop; ++e) {
            const T position = cursor[col[e]]++;
            out_row[position] = static_cast<T>(row);
            out_perm[position] = e;
          }
        }
      });
}

template <class T>
void to_csr(const T* src, const T* dst, int64_t num_nodes, int64_t num_edges, T* out_rowptr,
            T* out_col, int64_t* out_perm, int threads) {
  check_value(num_edges <= std::numeric_limits<T>::max(), "to_csr: ", num_edges,
              " edges do not fit 32-bit row pointers; pass int64 `src` and `dst`");
  check_ids("to_csr", "src", src, num_edges, num_nodes, threads);
  check_ids("to_csr", "dst", dst, num_edges, num_nodes, threads);
  counting_sort(dst, num_edges, num_nodes, threads, out_rowptr,
                [&](int64_t begin, int64_t end, T* cursor) {
                  for (int64_t e = begin; e < end; ++e) {
                    const T position = cursor[dst[e]]++;
                    out_col[position] = src[e];
                    out_perm[position] = e;
                  }
                });
}

#define TORCH_GAS_INSTANTIATE(T)                                                                  \
  template BatchRanges batch_ranges(const T*, int64_t, int64_t, const int64_t*, const int64_t*,   \
                                    int64_t, int);                                                \
  template std::vector<int64_t> subgraph(const T*, const T*, int64_t, const BatchRanges&, T*, T*, \
                                         T*, int64_t*, int);                                      \
  template void transpose(const T*, const T*, int64_t, int64_t, int64_t, T*, T*, int64_t*, int);  \
  template void to_csr(const T*, const T*, int64_t, int64_t, T*, T*, int64_t*, int);
TORCH_GAS_INSTANTIATE(int32_t)
TORCH_GAS_INSTANTIATE(int64_t)
#undef TORCH_GAS_INSTANTIATE

}  // namespace torch_gas
