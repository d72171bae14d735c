// A partition in O(N) memory: label propagation over the edges as they are stored.
#pragma once

#include <cstdint>
#include <functional>

namespace torch_gas {

// A graph in CSR form whose rows are read one after the other.
template <class T>
struct StreamedGraph {
  const T* rowptr;             // [N+1]
  const T* col;                // [E]
  const double* edge_weight;   // [E], not negative, or null: 1 each
  const int64_t* node_weight;  // [N], not negative, or null: 1 each
  int64_t num_nodes;
  int64_t num_edges;
};

// Passes over all edges that `stream_parts` makes at most.
extern const int kMostPasses;

// Called after each pass with the share of edges that it saw between labels.
using Report = std::function<void(double)>;

// Writes the part of each node, 0 .. num_parts-1. No part weighs more than 1.05 times the average,
// or than the average and the heaviest node where this is more (without node weights: than the
// average, rounded up). The seed and the graph decide the result.
template <class T>
void stream_parts(const StreamedGraph<T>& graph, int64_t num_parts, uint64_t seed,
                  const Report& report, int64_t* out_part);

}  // namespace torch_gas
