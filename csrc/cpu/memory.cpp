#include "memory.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace torch_gas {
namespace {

constexpr int64_t kLine = 64, kPiece = 1 << 16, kFewPieces = 16;
constexpr int kLanes = 4;  // that processors compute side by side

// A round of XXH64.
uint64_t mixed(uint64_t sum, uint64_t word) {
  sum += word * 0xC2B2AE3D27D4EB4F;
  return (sum << 31 | sum >> 33) * 0x9E3779B185EBCA87;
}

uint64_t hash(const char* data, int64_t bytes, uint64_t seed) {
  constexpr int64_t kStep = kLanes * sizeof(uint64_t);
  uint64_t lanes[kLanes] = {seed, ~seed, seed << 32, seed ^ 0x9E3779B185EBCA87};
  for (; bytes > 0; data += kStep, bytes -= kStep) {
    uint64_t words[kLanes] = {};
    if (bytes >= kStep) {
      std::memcpy(words, data, kStep);  // of a size that compilers know
    } else {
      std::memcpy(words, data, bytes);
    }
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = mixed(lanes[lane], words[lane]);
  }
  uint64_t sum = seed;
  for (const uint64_t lane : lanes) sum = mixed(sum, lane);
  return sum ^ sum >> 29;
}

}  // namespace

uint64_t fingerprint(uintptr_t address, int64_t bytes, int64_t lines, int threads) {
  const auto* const data = reinterpret_cast<const char*>(address);
  const bool is_sample = lines > 0 && (bytes - 1) / kLine >= lines;  // without overflow
  const int64_t size = is_sample ? kLine : kPiece;
  const int64_t count = is_sample ? lines : (bytes + kPiece - 1) / kPiece;
  const int64_t last = is_sample ? bytes - kLine : (count - 1) * kPiece;  // where it begins
  std::vector<uint64_t> sums(count);
  parallel_for(count, is_sample ? count : kFewPieces, threads, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) {
      const int64_t begin = i + 1 < count ? last / (count - 1) * i : last;
      sums[i] = hash(data + begin, std::min(size, bytes - begin), i);
    }
  });
  return hash(reinterpret_cast<const char*>(sums.data()), count * sizeof(uint64_t), bytes);
}

#ifdef __linux__
bool advise_huge_pages(uintptr_t address, uintptr_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + bytes) / page * page;
  return begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
}
#else
bool advise_huge_pages(uintptr_t, uintptr_t) {
  return false;
}
#endif

}  // namespace torch_gas
