// What the user calls the core's calls and arguments, where a call of Python passes the user's
// arguments on. Errors speak of these: names are looked up when an error's text is made.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <unordered_map>
#include <vector>

namespace torch_gas {

struct Naming {
  std::string call;
  std::unordered_map<std::string, std::string> names;  // the user's, by those of the core
};

// Those that the calling thread is within, the outermost first.
inline std::vector<std::shared_ptr<Naming>>& namings() {
  thread_local std::vector<std::shared_ptr<Naming>> all;
  return all;
}

inline std::string call_name(const std::string& call) {
  return namings().empty() ? call : namings().front()->call;
}

// A name that an inner naming gives may be named once more by an outer one.
inline std::string argument_name(std::string name) {
  for (auto naming = namings().rbegin(); naming != namings().rend(); ++naming) {
    const auto found = (*naming)->names.find(name);
    if (found != (*naming)->names.end()) name = found->second;
  }
  return name;
}

// Parts of an error's text, which cost nothing where there is no error.
struct Call {
  const char* name;
};
struct Argument {
  const char* name;
};

inline std::ostream& operator<<(std::ostream& text, Call call) {
  return text << call_name(call.name);
}

inline std::ostream& operator<<(std::ostream& text, Argument argument) {
  return text << argument_name(argument.name);
}

}  // namespace torch_gas
