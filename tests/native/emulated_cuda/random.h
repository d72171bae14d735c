// Random numbers of a type of its own. Code of a template over a standard type may be that of a
// file that sanitizers instrument, and they are to see nothing of the runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace emulated {

// SplitMix64 (Steele et al., 2014).
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}

  uint64_t below(uint64_t bound) { return next() % bound; }
  bool by_chance(double chance) { return static_cast<double>(next() >> 11) * 0x1p-53 < chance; }

  template <class T>
  void shuffle(T* items, size_t count) {
    for (size_t i = count; i > 1; --i) {
      const size_t other = below(i);
      const T kept = items[i - 1];
      items[i - 1] = items[other];
      items[other] = kept;
    }
  }

 private:
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  uint64_t state_;
};

}  // namespace emulated
