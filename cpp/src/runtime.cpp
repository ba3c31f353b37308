#include "runtime.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kName = "libonnxruntime.so";

/// Libraries of a folder by name, whichever version they end with: the wheel holds libonnxruntime.so.1.32.0 alone.
std::optional<fs::path> library_in(const fs::path& folder) {
    std::error_code failed;
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder, failed))
        if (entry.path().filename().string().starts_with(kName)) found.push_back(entry.path());
    if (found.empty()) return std::nullopt;
    return *std::max_element(found.begin(), found.end());
}

std::string one_line(std::string text) {
    std::replace_if(
        text.begin(), text.end(), [](unsigned char byte) { return byte < ' '; }, ' ');
    return text;
}

}  // namespace

Runtime::Runtime(const fs::path& library) : library_(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL), dlclose) {
    if (!library_) throw UserError("the runtime cannot be opened: " + one_line(dlerror()));
    const auto base = reinterpret_cast<const ort::ApiBase* (*)()>(dlsym(library_.get(), "OrtGetApiBase"));
    if (!base) throw UserError(library.string() + " is not ONNX Runtime: it has no OrtGetApiBase");
    version_ = base()->GetVersionString();
    const auto table = base()->GetApi(ort::kApiVersion);
    if (!table) throw UserError(library.string() + " is ONNX Runtime " + version_ + ", which is too old; take 1.30");
    api_.emplace(table);
    check(api_->CreateEnv(ort::LogLevel::fatal, "lit_sft", &env_), library.string());
}

Runtime::~Runtime() {
    if (env_) api_->ReleaseEnv(env_);
}

void Runtime::check(ort::Status* status, std::string_view where) const {
    if (!status) return;
    const auto said = one_line(api_->GetErrorMessage(status));
    api_->ReleaseStatus(status);
    throw UserError(std::string(where) + ": ONNX Runtime says: " + said);
}

fs::path find_runtime(const fs::path& given) {
    const char* named = std::getenv("LIT_SFT_ORT");
    fs::path wanted = !given.empty() ? given : fs::path(named ? named : "");
    std::error_code failed;
    if (!wanted.empty()) {
        if (!fs::is_directory(wanted, failed)) {
            if (fs::exists(wanted, failed)) return wanted;
        } else if (const auto found = library_in(wanted)) {
            return *found;
        } else if (const auto inside = library_in(wanted / "capi")) {  // site-packages/onnxruntime
            return *inside;
        }
        throw UserError((given.empty() ? "LIT_SFT_ORT=" : "--runtime ") + wanted.string() + ": there is no " +
                        std::string(kName));
    }
    const auto program = fs::read_symlink("/proc/self/exe", failed).parent_path();
    if (const auto found = library_in(program)) return *found;
    throw UserError(
        "ONNX Runtime is missing: pip install onnxruntime, then give --runtime (or LIT_SFT_ORT) the folder "
        "onnxruntime/capi of it, or put libonnxruntime.so beside this program");
}

}  // namespace lit_sft
