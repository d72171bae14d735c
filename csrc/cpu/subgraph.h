// The one-hop subgraph of a union of parts of a graph in CSR form, whose rows are destinations and
// columns sources. `T` is int32_t or int64_t. Nothing is written before every argument has been
// checked.
#pragma once

#include <cstdint>
#include <vector>

#include "../ranges.h"

namespace torch_gas {

// The local ids of 64 consecutive nodes: adding `shift` gives those of the batch; those of the halo
// follow each other from `first` on.
struct NodeBlock {
  uint64_t halo = 0;   // bit i: whether node i of the block is in the halo
  uint32_t first = 0;  // numbers are those of a batch: below 2^32, modulo which `shift` counts
  uint32_t shift = 0;
};

template <class T>
class Subgraph {
 public:
  using Id = T;

  // Checks the ranges and what they touch of rowptr [N+1] and col [E], and finds the halo. Both
  // arrays must stay as they are until `write` is done.
  Subgraph(const T* rowptr, const T* col, int64_t num_nodes, int64_t num_edges,
           const int64_t* start, const int64_t* count, int64_t num_ranges, int threads);

  int64_t num_rows() const { return rows_.total(); }    // B
  int64_t num_edges() const { return edges_.total(); }  // E_B
  int64_t halo_size() const { return halo_size_; }      // S

  // Writes the subgraph.
  //   out_rowptr [B+1], out_col [E_B]       local ids: the rows of the batch in order, then the
  //   halo out_e_id [E_B]                        positions of the edges in `col` out_n_id [B+S] the
  //   nodes of the batch, then those of the halo, ascending
  // Entries of a row are in the order of `col`, or, if `ascending`, sorted by local id, stable.
  void write(T* out_rowptr, T* out_col, T* out_row, T* out_e_id, int64_t* out_n_id, bool ascending,
             int threads) const;

 private:
  void find_halo(int64_t num_nodes, int threads);
  void add_ranges();
  uint32_t local_id(T node) const;
  // What takes row pointers and positions of edges of the graph to those of the batch, near a row.
  int64_t shift_of_edges(int64_t local) const;
  void relabel(int64_t source, int64_t length, T* out) const;
  void write_ascending(T* out_col, T* out_e_id, int threads) const;

  const T* rowptr_;
  const T* col_;
  Ranges rows_, edges_;
  int64_t halo_size_ = 0;
  std::vector<int64_t> order_;  // the ranges with rows, ascending
  std::vector<NodeBlock> blocks_;
};

}  // namespace torch_gas
