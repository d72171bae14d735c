#include "subgraph.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "../simd.h"

namespace torch_gas {
namespace {

constexpr int64_t kGrainRows = kGrain / 16;  // of which some edges each are written

constexpr int kBlockBits = 6;  // 64 nodes
constexpr int64_t kMostOfBatch = int64_t{1} << 32;

// What `shift` says of a block that several ranges meet in.
constexpr uint32_t kMixed = uint32_t{1} << 31;

// The bits of a block up to that of `node`, which becomes the highest.
inline uint64_t up_to(uint64_t bits, int64_t node) {
  return bits << (~node & 63);
}

inline uint32_t popcount(uint64_t bits) {
  return static_cast<uint32_t>(__builtin_popcountll(bits));
}

// Rewrites ids of the graph as local ones, up to the first in a block of several ranges, and says
// how many these are. Without branches on the data: which source is in the halo is random.
template <class T>
struct Relabel {
  TORCH_GAS_LOOP static void run(const NodeBlock* blocks, const T* col, int64_t length, T* out,
                                 int64_t* done) {
    int64_t i = 0;
    for (; i < length; ++i) {
      const NodeBlock& block = blocks[col[i] >> kBlockBits];
      if (block.shift == kMixed) break;
      const uint64_t bits = up_to(block.halo, col[i]);
      const uint32_t in_batch = static_cast<uint32_t>(col[i]) + block.shift;
      const uint32_t in_halo = block.first + popcount(bits) - 1;
      const auto select = static_cast<uint32_t>(static_cast<int64_t>(bits) >> 63);
      out[i] = static_cast<T>((in_halo & select) | (in_batch & ~select));
    }
    *done = i;
  }
};

// Sorts the entries of a row by column, stable. Few are put where as many are smaller, without
// branches on the data.
template <class T>
void sort_entries(T* col, T* e_id, int64_t size) {
  constexpr int64_t kFew = 16;
  if (std::is_sorted(col, col + size)) return;
  if (size <= kFew) {
    T old_col[kFew], old_e_id[kFew];
    std::copy_n(col, size, old_col);
    std::copy_n(e_id, size, old_e_id);
    for (int64_t i = 0; i < size; ++i) {
      int64_t smaller = 0;
      for (int64_t k = 0; k < i; ++k) smaller += old_col[k] <= old_col[i];
      for (int64_t k = i + 1; k < size; ++k) smaller += old_col[k] < old_col[i];
      col[smaller] = old_col[i];
      e_id[smaller] = old_e_id[i];
    }
    return;
  }
  std::vector<std::pair<T, T>> entries(size);
  for (int64_t i = 0; i < size; ++i) entries[i] = {col[i], e_id[i]};
  std::sort(entries.begin(), entries.end());
  for (int64_t i = 0; i < size; ++i) std::tie(col[i], e_id[i]) = entries[i];
}

}  // namespace

template <class T>
Subgraph<T>::Subgraph(const T* rowptr, const T* col, int64_t num_nodes, int64_t num_edges,
                      const int64_t* start, const int64_t* count, int64_t num_ranges, int threads)
    : rowptr_(rowptr), col_(col) {
  rows_ = make_ranges("subgraph", "start", start, count, num_ranges, num_nodes);
  check_disjoint("subgraph", "start", rows_);
  std::vector<int64_t> edge_start, edge_count;
  for (int64_t p = 0; p < num_ranges; ++p) {
    const int64_t begin = start[p], end = start[p] + count[p];
    check_rowptr("subgraph", rowptr, begin, end, num_edges, threads);
    // An empty range may stand where no row pointer has been checked.
    edge_start.push_back(count[p] > 0 ? rowptr[begin] : 0);
    edge_count.push_back(count[p] > 0 ? rowptr[end] - rowptr[begin] : 0);
  }
  edges_ = make_ranges("subgraph", "rowptr", edge_start.data(), edge_count.data(), num_ranges,
                       num_edges);
  check_value(std::max(rows_.total(), edges_.total()) < kMostOfBatch,
              "subgraph: a batch must have fewer than 2^32 nodes and edges, but has ",
              rows_.total(), " and ", edges_.total(), "; put fewer parts in it");
  find_halo(num_nodes, threads);
}

// Each piece of the edges marks their sources in a bitmap of its own.
template <class T>
void Subgraph<T>::find_halo(int64_t num_nodes, int threads) {
  const int64_t num_blocks = (num_nodes + 63) >> kBlockBits;
  const Pieces pieces(edges_.total(), std::max(num_blocks, kGrain), threads);
  std::vector<uint64_t> sources(pieces.count * num_blocks);
  FirstBad bad;  // position in `col`
  parallel_for(pieces.count, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      uint64_t* words = sources.data() + piece * num_blocks;
      edges_.for_each_run(pieces.begin(piece), pieces.begin(piece + 1),
                          [&](int64_t source, int64_t, int64_t length) {
                            for (int64_t e = source; e < source + length; ++e) {
                              if (!in_range(col_[e], num_nodes)) return bad.report(e);
                              words[col_[e] >> kBlockBits] |= uint64_t{1} << (col_[e] & 63);
                            }
                          });
    }
  });
  check_reported(bad, "subgraph", "col", col_, num_nodes);
  blocks_.resize(num_blocks);
  for (int64_t piece = 0; piece < pieces.count; ++piece) {
    for (int64_t b = 0; b < num_blocks; ++b) blocks_[b].halo |= sources[piece * num_blocks + b];
  }
  add_ranges();
  int64_t local = rows_.total();
  for (NodeBlock& block : blocks_) {
    block.first = static_cast<uint32_t>(local);
    local += popcount(block.halo);
  }
  halo_size_ = local - rows_.total();
}

// The nodes of the batch do not belong to the halo.
template <class T>
void Subgraph<T>::add_ranges() {
  for (int64_t p = 0; p < rows_.size(); ++p) {
    if (rows_.count(p) > 0) order_.push_back(p);
  }
  std::sort(order_.begin(), order_.end(),
            [&](int64_t p, int64_t q) { return rows_.start[p] < rows_.start[q]; });
  int64_t last = -1;  // block of the range before
  for (const int64_t p : order_) {
    const int64_t start = rows_.start[p], end = start + rows_.count(p);
    for (int64_t begin = start; begin < end;) {
      const int64_t stop = std::min(end, (begin | 63) + 1), b = begin >> kBlockBits;
      const uint64_t low = ~uint64_t{0} << (begin & 63);
      const uint64_t high = ~uint64_t{0} >> (63 - ((stop - 1) & 63));
      blocks_[b].halo &= ~(low & high);
      blocks_[b].shift = b == last ? kMixed : static_cast<uint32_t>(rows_.first[p] - start);
      begin = stop;
      last = b;
    }
  }
}

template <class T>
uint32_t Subgraph<T>::local_id(T node) const {
  const NodeBlock& block = blocks_[node >> kBlockBits];
  const uint64_t bits = up_to(block.halo, node);
  if (bits >> 63) return block.first + popcount(bits) - 1;
  const auto after = std::upper_bound(order_.begin(), order_.end(), node,
                                      [&](T id, int64_t p) { return id < rows_.start[p]; });
  const int64_t p = *std::prev(after);
  return static_cast<uint32_t>(rows_.first[p] + (node - rows_.start[p]));
}

template <class T>
int64_t Subgraph<T>::shift_of_edges(int64_t local) const {
  const int64_t p = rows_.range_of(local);
  return edges_.first[p] - edges_.start[p];
}

template <class T>
void Subgraph<T>::relabel(int64_t source, int64_t length, T* out) const {
  const T* col = col_ + source;
  for (int64_t i = 0, done = 0; i < length; ++i) {
    run_loop<Relabel<T>>(blocks_.data(), col + i, length - i, out + i, &done);
    i += done;
    if (i < length) out[i] = static_cast<T>(local_id(col[i]));
  }
}

template <class T>
void Subgraph<T>::write(T* out_rowptr, T* out_col, T* out_row, T* out_e_id, int64_t* out_n_id,
                        bool ascending, int threads) const {
  parallel_for(rows_.total(), kGrainRows, threads, [&](int64_t begin, int64_t end) {
    rows_.for_each_run(begin, end, [&](int64_t node, int64_t local, int64_t length) {
      const int64_t shift = shift_of_edges(local);
      for (int64_t i = 0; i < length; ++i) {
        const int64_t first = rowptr_[node + i] + shift, last = rowptr_[node + i + 1] + shift;
        out_rowptr[local + i] = static_cast<T>(first);
        out_n_id[local + i] = node + i;
        if (out_row != nullptr) {
          std::fill(out_row + first, out_row + last, static_cast<T>(local + i));
        }
      }
    });
  });
  out_rowptr[rows_.total()] = static_cast<T>(edges_.total());
  parallel_for(static_cast<int64_t>(blocks_.size()), kGrain, threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b) {
                   int64_t* out = out_n_id + blocks_[b].first;
                   for (uint64_t bits = blocks_[b].halo; bits != 0; bits &= bits - 1) {
                     *out++ = b * 64 + __builtin_ctzll(bits);
                   }
                 }
               });
  if (ascending) return write_ascending(out_col, out_e_id, threads);
  parallel_for(edges_.total(), kGrain, threads, [&](int64_t begin, int64_t end) {
    edges_.for_each_run(begin, end, [&](int64_t source, int64_t position, int64_t length) {
      relabel(source, length, out_col + position);
      std::iota(out_e_id + position, out_e_id + position + length, static_cast<T>(source));
    });
  });
}

// Columns that ascend in a row of the graph are, after relabelling, two ascending sequences, those
// of the batch (if its ranges ascend) and those of the halo: taken apart, they need no sort.
template <class T>
void Subgraph<T>::write_ascending(T* out_col, T* out_e_id, int threads) const {
  const T num_rows = static_cast<T>(rows_.total());
  parallel_for(rows_.total(), kGrainRows, threads, [&](int64_t begin, int64_t end) {
    std::vector<T> halo_col, halo_e_id;
    rows_.for_each_run(begin, end, [&](int64_t node, int64_t local, int64_t rows) {
      const int64_t shift = shift_of_edges(local);
      for (int64_t i = node; i < node + rows; ++i) {
        const int64_t source = rowptr_[i], length = rowptr_[i + 1] - source;
        if (length > static_cast<int64_t>(halo_col.size())) {
          halo_col.resize(length);
          halo_e_id.resize(length);
        }
        T* const col = out_col + source + shift;
        T* const e_id = out_e_id + source + shift;
        relabel(source, length, col);
        int64_t inside = 0, outside = 0;
        for (int64_t k = 0; k < length; ++k) {
          const T id = col[k], e = static_cast<T>(source + k);
          col[inside] = halo_col[outside] = id;
          e_id[inside] = halo_e_id[outside] = e;
          inside += id < num_rows;
          outside += id >= num_rows;
        }
        std::copy_n(halo_col.data(), outside, col + inside);
        std::copy_n(halo_e_id.data(), outside, e_id + inside);
        sort_entries(col, e_id, inside);
        sort_entries(col + inside, e_id + inside, outside);
      }
    });
  });
}

template class Subgraph<int32_t>;
template class Subgraph<int64_t>;

}  // namespace torch_gas
