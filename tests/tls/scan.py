"""Scans a server with sslyze and judges what it found.

usage: scan.py FANWAVE PLACE
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SCANS = [
    *["--certinfo", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3"],
    *["--compression", "--early_data", "--openssl_ccs", "--fallback", "--heartbleed", "--robot"],
    *["--reneg", "--elliptic_curves", "--ems"],
]
SUITES = ["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"]
CURVES = ["X25519", "secp256r1", "secp384r1"]
# Nobody but the test trusts its certificate.
OF_THE_TEST = ["certificate_path_validation"]


def accepted(result):
    return sorted(suite["cipher_suite"]["name"] for suite in result["accepted_cipher_suites"])


# What must come of each scan: its name in the report, and the answer that is right.
CHECKS = {
    **{
        f"{version}_cipher_suites": (accepted, [])
        for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2"]
    },
    "tls_1_3_cipher_suites": (accepted, SUITES),
    "tls_1_3_early_data": (lambda result: result["supports_early_data"], False),
    "tls_compression": (lambda result: result["supports_compression"], False),
    "openssl_ccs_injection": (lambda result: result["is_vulnerable_to_ccs_injection"], False),
    "tls_fallback_scsv": (lambda result: result["supports_fallback_scsv"], True),
    "heartbleed": (lambda result: result["is_vulnerable_to_heartbleed"], False),
    "robot": (lambda result: result["robot_result"], "NOT_VULNERABLE_RSA_NOT_SUPPORTED"),
    "session_renegotiation": (lambda result: result["is_vulnerable_to_client_renegotiation_dos"], False),
    "elliptic_curves": (lambda result: sorted(curve["name"] for curve in result["supported_curves"]), CURVES),
    "tls_extended_master_secret": (lambda result: result["supports_ems_extension"], True),
    "certificate_info": (
        lambda result: [
            deployment["received_chain_has_valid_order"] for deployment in result["certificate_deployments"]
        ],
        [True],
    ),
}


def certificate(directory):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        + ["-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        + ["-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True,
        capture_output=True,
    )


def start(program, directory):
    """The server, and its port with TLS."""
    server = subprocess.Popen(
        [program, "serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1"]
        + ["--listen-tls", "127.0.0.1:0", "--upgrade-socket", "none"]
        + ["--tls-cert", directory / "cert.pem", "--tls-key", directory / "key.pem"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in server.stdout:
        if line.startswith("data, TLS"):
            return server, line.rsplit(":", 1)[1].strip()
    raise SystemExit("the server does not start")


def main():
    program, place = sys.argv[1:]
    failures = passed = 0

    def judge(name, found, right):
        nonlocal failures, passed
        if found == right:
            passed += 1
        else:
            failures += 1
            print(f"sslyze: {name}: {found}, not {right}")

    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        certificate(directory)
        server, port = start(program, directory)
        try:
            scan = subprocess.run(
                [f"{place}/bin/sslyze", "--mozilla_config=modern", *SCANS]
                + [f"--json_out={directory / 'report.json'}", f"localhost:{port}"],
                capture_output=True,
                text=True,
                timeout=300,
            )
        finally:
            server.terminate()
            server.wait()
        report = json.loads((directory / "report.json").read_text())
    [host] = report["server_scan_results"]
    judge("status", host["scan_status"], "COMPLETED")
    for name, (of, right) in CHECKS.items():
        scanned = host["scan_result"][name]
        found = of(scanned["result"]) if scanned["result"] else scanned["error_reason"]
        judge(name, found, right)
    findings = re.findall(r"^ +\* (\w+): ", scan.stdout.split("COMPLIANCE")[-1], re.MULTILINE)
    judge("Mozilla's modern configuration", findings, OF_THE_TEST)
    word = "FAILED" if failures else "ok"
    print(f"test result: {word}. {passed} passed; {failures} failed; 0 ignored; 0 measured; 0 filtered out")
    sys.exit(failures > 0)


main()
