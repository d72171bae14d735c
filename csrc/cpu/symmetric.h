// The simple symmetric graph that partitioners need, without self-loops and repeated edges.
//
// Two steps, each with nothing but its input and its result in memory: the pairs of nodes that are
// joined, each in the row of its smaller node; then both directions of each pair. `T` and `Id` are
// int32_t or int64_t.
#pragma once

#include <cstdint>

namespace torch_gas {

// The edges of a graph as their owner stores them: by row pointers, or by one id for each end.
template <class T>
struct Edges {
  const T* rowptr;  // [N+1], or null where `dst` is given
  const T* dst;     // [E], or null
  const T* src;     // [E]
  int64_t size;     // E
};

// Writes each pair {r, c}, r < c, that an edge of positive weight joins as entry c of row r, and
// returns their number.
//   weight [E]         read; null: every edge counts
//   out_rowptr [N+1]
//   out_col [E]        ascending in each row; what lies behind the pairs is of no meaning
//   out_weight [E]     the sums of the weights of a pair's edges; null without weights
template <class T, class Id>
int64_t adjacent_pairs(const Edges<T>& edges, const double* weight, int64_t num_nodes,
                       int64_t* out_rowptr, Id* out_col, double* out_weight, int threads);

// Both directions of the pairs as CSR, ascending in each row.
//   rowptr [N+1], col, weight [U]             read; weight may be null
//   out_rowptr [N+1], out_col, out_weight [2 U]
template <class Id>
void symmetric(const int64_t* rowptr, const Id* col, const int64_t* weight, int64_t num_nodes,
               int64_t num_pairs, Id* out_rowptr, Id* out_col, Id* out_weight);

}  // namespace torch_gas
