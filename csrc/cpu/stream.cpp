#include "stream.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

#include "../check.h"

namespace torch_gas {
namespace {

constexpr double kImbalance = 0.05;     // of the largest part, beyond the average
constexpr double kClusterShare = 0.05;  // of an average part that a cluster may fill
constexpr int kLevels = 2;              // clusters, and clusters of clusters
constexpr int kClusterPasses = 3;
constexpr int kRefinePasses = 6;
constexpr int32_t kNone = -1;

// Random numbers by position (splitmix64).
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What a pass moves: nodes, or clusters of nodes, which move as one.
struct Units {
  std::vector<int32_t> of;      // unit of each node, [N]
  std::vector<int32_t> first;   // where each unit's nodes start, [U+1]
  std::vector<int32_t> nodes;   // nodes by unit, [N]
  std::vector<int64_t> weight;  // [U]

  Units(std::vector<int32_t> unit_of, int32_t num_units, const int64_t* node_weight)
      : of(std::move(unit_of)), first(num_units + 1, 0), nodes(of.size()), weight(num_units, 0) {
    const int64_t num_nodes = of.size();
    for (int64_t v = 0; v < num_nodes; ++v) {
      ++first[of[v]];
      weight[of[v]] += node_weight == nullptr ? 1 : node_weight[v];
    }
    std::partial_sum(first.begin(), first.end(), first.begin());
    for (int64_t v = num_nodes - 1; v >= 0; --v) nodes[--first[of[v]]] = static_cast<int32_t>(v);
  }

  int32_t size() const { return static_cast<int32_t>(weight.size()); }
};

// Label propagation with bounded labels (Meyerhenke, Sanders, Schulz: Partitioning Complex Networks
// via Size-constrained Clustering, 2014), which finds clusters; then a label is a part, and
// clusters, and at last nodes, are moved between parts again and again by the rule of linear
// deterministic greedy (Stanton, Kliot: Streaming Graph Partitioning for Large Distributed Graphs,
// 2012; restreamed: Nishimura, Ugander, 2013). Coarse graphs are never built: a cluster reads the
// edges of its nodes.
template <class T>
class Stream {
 public:
  Stream(const StreamedGraph<T>& graph, int64_t num_parts, uint64_t seed, const Report& report)
      : graph_(graph), num_parts_(num_parts), random_(mix(seed)), report_(report) {
    const int64_t size = std::max(graph.num_nodes, num_parts);
    label_.resize(graph.num_nodes);
    link_.assign(size, 0.0);
  }

  void run(int64_t* out_part) {
    std::vector<int32_t> node(graph_.num_nodes);
    std::iota(node.begin(), node.end(), 0);
    std::vector<std::pair<std::vector<int32_t>, int32_t>>
        finer;  // units of each level but the last
    Units units(std::move(node), static_cast<int32_t>(graph_.num_nodes), graph_.node_weight);
    const int64_t total = std::accumulate(units.weight.begin(), units.weight.end(), int64_t{0});
    average_ = static_cast<double>(total) / static_cast<double>(num_parts_);
    limit_ = std::max((1 + kImbalance) * average_, std::ceil(average_));
    for (int level = 0; level < kLevels; ++level) {
      Units coarser = clusters(units);
      finer.emplace_back(std::move(units.of), units.size());
      units = std::move(coarser);
    }
    place(units);
    refine(units);
    for (; !finer.empty(); finer.pop_back()) {
      auto& [of, num_units] = finer.back();
      units = Units(std::move(of), num_units, graph_.node_weight);
      refine(units);
    }
    std::copy(label_.begin(), label_.end(), out_part);
  }

 private:
  // Moves each unit, in random order, to the label that choose(own label, weight) says. Returns how
  // many moved.
  template <class Choose>
  int64_t pass(const Units& units, const std::vector<int32_t>& order, const Choose& choose) {
    int64_t moved = 0;
    double between = 0, seen = 0;
    for (const int32_t unit : order) {
      const int32_t own = label_[units.nodes[units.first[unit]]];
      const int64_t weight = units.weight[unit];
      if (own != kNone) load_[own] -= weight;
      seen += read_links(units, unit, own);
      const int32_t chosen = choose(own, weight);
      for (const int32_t label : linked_) {
        if (label != chosen) between += link_[label];
        link_[label] = 0;
      }
      linked_.clear();
      load_[chosen] += weight;
      if (chosen == own) continue;
      ++moved;
      for (int32_t i = units.first[unit]; i < units.first[unit + 1]; ++i) {
        label_[units.nodes[i]] = chosen;
      }
    }
    report_(seen > 0 ? between / seen : 0.0);
    return moved;
  }

  // Adds up the edges from a unit to each label, those inside of it left out; returns the sum of
  // all its edges to labelled nodes.
  double read_links(const Units& units, int32_t unit, int32_t own) {
    double sum = 0;
    for (int32_t i = units.first[unit]; i < units.first[unit + 1]; ++i) {
      const int32_t node = units.nodes[i];
      for (int64_t e = graph_.rowptr[node]; e < graph_.rowptr[node + 1]; ++e) {
        const T other = graph_.col[e];
        const int32_t label = label_[other];
        const double weight = graph_.edge_weight == nullptr ? 1.0 : graph_.edge_weight[e];
        if (label == kNone || weight == 0) continue;
        sum += weight;
        if (label == own && units.of[other] == unit) continue;
        if (link_[label] == 0) linked_.push_back(label);
        link_[label] += weight;
      }
    }
    return sum;
  }

  // Units that label propagation puts together.
  Units clusters(const Units& units) {
    label_ = units.of;
    load_ = units.weight;
    const double most = kClusterShare * average_;
    for (int i = 0; i < kClusterPasses; ++i) {
      random_ = mix(random_);
      const int64_t moved = pass(units, shuffled(units.size()), [&](int32_t own, int64_t weight) {
        int32_t best = own;
        for (const int32_t label : linked_) {
          const bool fits = static_cast<double>(load_[label] + weight) <= most;
          if (fits && is_better(label, best)) best = label;
        }
        return best;
      });
      if (moved * 50 < units.size()) break;
    }
    std::vector<int32_t> id(units.size(), kNone);
    int32_t size = 0;
    for (int32_t& label : label_) {
      if (id[label] == kNone) id[label] = size++;
      label = id[label];
    }
    return Units(label_, size, graph_.node_weight);
  }

  // Ties are broken at random, but not by the order in which labels were met.
  bool is_better(int32_t label, int32_t best) const {
    if (link_[label] != link_[best]) return link_[label] > link_[best];
    return mix(random_ ^ label) < mix(random_ ^ best);
  }

  // Gives each unit its first part, heavy ones first.
  void place(const Units& units) {
    std::fill(label_.begin(), label_.end(), kNone);
    load_.assign(num_parts_, 0);
    std::vector<int32_t> order = shuffled(units.size());
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return units.weight[a] > units.weight[b]; });
    // Loads only grow here, so that an outdated entry is too small and comes up in time.
    using Entry = std::pair<int64_t, int32_t>;  // load, part
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> lightest;
    for (int32_t part = 0; part < num_parts_; ++part) lightest.emplace(0, part);
    pass(units, order, [&](int32_t, int64_t weight) {
      const int32_t best = best_part(kNone, weight);
      if (best != kNone) return best;
      while (lightest.top().first != load_[lightest.top().second]) {
        const int32_t part = lightest.top().second;
        lightest.pop();
        lightest.emplace(load_[part], part);
      }
      return lightest.top().second;
    });
  }

  void refine(const Units& units) {
    for (int i = 0; i < kRefinePasses; ++i) {
      random_ = mix(random_);
      const int64_t moved = pass(units, shuffled(units.size()), [&](int32_t own, int64_t weight) {
        return best_part(own, weight);
      });
      if (moved * 200 < units.size()) break;
    }
  }

  // The part with the most edges to it, each counted less the fuller the part is.
  int32_t best_part(int32_t own, int64_t weight) const {
    int32_t best = own;
    double most = own == kNone ? 0 : score(own);
    for (const int32_t part : linked_) {
      if (part == own || static_cast<double>(load_[part] + weight) > limit_) continue;
      const double value = score(part);
      const auto rank = std::make_pair(load_[part], part);
      if (value > most ||
          (value == most && best != own && rank < std::make_pair(load_[best], best))) {
        most = value;
        best = part;
      }
    }
    return best;
  }

  double score(int32_t part) const {
    return link_[part] * std::max(0.0, 1 - static_cast<double>(load_[part]) / limit_);
  }

  std::vector<int32_t> shuffled(int32_t size) const {
    std::vector<int32_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    for (int32_t i = size - 1; i > 0; --i) {
      std::swap(order[i], order[mix(random_ + i) % (static_cast<uint64_t>(i) + 1)]);
    }
    return order;
  }

  const StreamedGraph<T>& graph_;
  const int64_t num_parts_;
  uint64_t random_;
  const Report& report_;
  double average_ = 0, limit_ = 0;  // weight of a part
  std::vector<int32_t> label_;      // of each node: a cluster, then a part
  std::vector<int64_t> load_;       // weight of each label
  std::vector<double> link_;        // from the unit at hand to each label
  std::vector<int32_t> linked_;     // labels whose link is not 0
};

}  // namespace

const int kMostPasses = kLevels * kClusterPasses + 1 + (kLevels + 1) * kRefinePasses;

template <class T>
void stream_parts(const StreamedGraph<T>& graph, int64_t num_parts, uint64_t seed,
                  const Report& report, int64_t* out_part) {
  check_value(graph.num_nodes <= std::numeric_limits<int32_t>::max(),
              "stream_parts: ", graph.num_nodes,
              " nodes are too many; at most 2**31 - 1 can be partitioned");
  check_value(num_parts >= 1 && num_parts <= std::numeric_limits<int32_t>::max(),
              "stream_parts: `num_parts` must lie in 1 .. 2**31 - 1, but is ", num_parts);
  check_rowptr("stream_parts", graph.rowptr, 0, graph.num_nodes, graph.num_edges, 1);
  check_whole("stream_parts", graph.rowptr, graph.num_nodes, graph.num_edges);
  check_ids("stream_parts", "col", graph.col, graph.num_edges, graph.num_nodes, 1);
  int64_t total = 0;
  for (int64_t v = 0; graph.node_weight != nullptr && v < graph.num_nodes; ++v) {
    const int64_t weight = graph.node_weight[v];
    check_value(weight >= 0 && weight <= std::numeric_limits<int64_t>::max() - total,
                "stream_parts: `node_weight` must hold non-negative numbers whose sum is less than "
                "2**63; divide them");
    total += weight;
  }
  Stream<T>(graph, num_parts, seed, report).run(out_part);
}

template void stream_parts(const StreamedGraph<int32_t>&, int64_t, uint64_t, const Report&,
                           int64_t*);
template void stream_parts(const StreamedGraph<int64_t>&, int64_t, uint64_t, const Report&,
                           int64_t*);

}  // namespace torch_gas
