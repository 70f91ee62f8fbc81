// Java as a caller: does the requests that peer_doors.py writes to its standard input, a line each, one after the other.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.Arrays;
import java.util.Base64;
import java.util.HexFormat;
import java.util.function.Function;

class Doors {
    static final Duration PATIENCE = Duration.ofSeconds(20);
    // As they are unless somebody says otherwise: the first request of a connection offers `Upgrade: h2c`.
    static final HttpClient FOLLOWING = HttpClient.newBuilder().followRedirects(HttpClient.Redirect.NORMAL).build();
    static final HttpClient STAYING = HttpClient.newBuilder().followRedirects(HttpClient.Redirect.NEVER).build();

    record Ask(String program, String method, URI uri, String host, byte[] body, String framing, boolean follow) {}

    record Found(int status, byte[] body, Function<String, String> told) {}

    public static void main(String[] arguments) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = lines.readLine()) != null; ) {
            var words = line.split("\t", -1);
            var body = words[7].isEmpty() ? null : pattern(Integer.parseInt(words[7]));
            var ask = new Ask(words[0], words[2], URI.create(words[3]), words[4], body, words[8], words[9].equals("follow"));
            try {
                Found found = null;
                for (int left = words[1].equals("again") ? 3 : 1; left > 0; left--) {
                    found = ask.program.equals("HttpClient") ? withClient(ask) : withConnection(ask);
                }
                var digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(found.body));
                var told = found.told;
                var start = Arrays.copyOf(found.body, Math.min(found.body.length, 1000));
                System.out.println(String.join("\t", "" + found.status, digest, told.apply("Location"), told.apply("Content-Length"),
                        told.apply("X-Countersign-Error"), "", Base64.getEncoder().encodeToString(start)));
            } catch (Exception error) {
                System.out.println("0\t" + error.toString().replaceAll("\\s+", " "));
            }
        }
    }

    static byte[] pattern(int size) {
        var body = new byte[size];
        var word = "countersign ".getBytes(StandardCharsets.US_ASCII);
        for (int at = 0; at < size; at++) {
            body[at] = word[at % word.length];
        }
        return body;
    }

    static Found withClient(Ask ask) throws Exception {
        var request = HttpRequest.newBuilder(ask.uri).timeout(PATIENCE);
        BodyPublisher publisher = ask.body == null ? BodyPublishers.noBody() : BodyPublishers.ofByteArray(ask.body);
        // What it does not know the length of, it sends in chunks.
        request.method(ask.method, ask.framing.equals("chunked") ? BodyPublishers.fromPublisher(publisher) : publisher);
        request.expectContinue(ask.framing.equals("expect"));
        if (!ask.host.isEmpty()) {
            request.header("Host", ask.host);
        }
        var client = ask.follow ? FOLLOWING : STAYING;
        var reply = client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
        return new Found(reply.statusCode(), reply.body(), name -> reply.headers().firstValue(name).orElse(""));
    }

    static Found withConnection(Ask ask) throws Exception {
        var connection = (HttpURLConnection) ask.uri.toURL().openConnection();
        connection.setConnectTimeout((int) PATIENCE.toMillis());
        connection.setReadTimeout((int) PATIENCE.toMillis());
        connection.setInstanceFollowRedirects(ask.follow);
        connection.setRequestMethod(ask.method);
        if (!ask.host.isEmpty()) {
            connection.setRequestProperty("Host", ask.host);
        }
        if (ask.body != null) {
            connection.setDoOutput(true);
            if (ask.framing.equals("chunked")) {
                connection.setChunkedStreamingMode(100);
            } else {
                connection.setFixedLengthStreamingMode(ask.body.length);
            }
            try (var output = connection.getOutputStream()) {
                output.write(ask.body);
            }
        }
        int status = connection.getResponseCode();
        try (var input = status < 400 ? connection.getInputStream() : connection.getErrorStream()) {
            byte[] body = input == null ? new byte[0] : input.readAllBytes();
            return new Found(status, body, name -> connection.getHeaderField(name) == null ? "" : connection.getHeaderField(name));
        }
    }
}
